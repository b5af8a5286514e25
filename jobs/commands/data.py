"""Bring in the rows that a config names: `relevance sample`, `relevance import`, and the first stage of
`relevance run`.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from jobs.console import Console
from pipeline.config.error_messages import explain, read_yaml_mapping
from pipeline.config.extensions import IMPORTERS, ImportContext, load_importers
from pipeline.config.run import RunConfig
from pipeline.config.sources import PathSource, SourceBlock
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.data.importers.importer import ImportCounts


def bring_in(config: RunConfig, console: Console) -> dict[str, Any]:
    """Write the rows of every source of the config into the run's data folder."""
    labels = {task.name: task.labels for task in config.tasks}
    for source in config.sources:
        target = ImportContext(config.judged_dir, config.run_dir / "data", config.seed, labels)
        tell_counts(import_rows(source, target, console), source, config.judged_dir, console)
    return {"judged": str(config.judged_dir)}


def sample(
    out_dir: Path, rows_per_task: int, unlabelled_rows_per_task: int, seed: int, console: Console
) -> dict[str, Any]:
    """Write the synthetic ads marketplace."""
    load_importers()
    source = IMPORTERS["sample"].block(
        kind="sample", rows_per_task=rows_per_task, unlabelled_rows_per_task=unlabelled_rows_per_task
    )
    target = ImportContext(out_dir / "judged", out_dir, seed)
    told = tell_counts(import_rows(source, target, console), source, target.judged_dir, console)
    return {**told, "unlabelled": str(out_dir / "unlabelled")}


def import_source(
    kind: str,
    path: Path,
    out_dir: Path,
    console: Console,
    mapping: Path | None = None,
    language: str | None = None,
) -> dict[str, Any]:
    """Import one outside source into contract rows."""
    source = build_source(kind, path, mapping, language)
    target = ImportContext(out_dir, out_dir)
    return tell_counts(import_rows(source, target, console), source, out_dir, console)


def build_source(kind: str, path: Path, mapping: Path | None, language: str | None) -> PathSource:
    """The source block that the command line describes. ConfigError: it is none, or lacks a setting."""
    load_importers()
    importers = sorted(IMPORTERS.items())
    blocks = {name: one.block for name, one in importers if issubclass(one.block, PathSource)}
    if kind not in blocks:
        raise ConfigError(f"{kind!r} is not a source that lies at a path; known: {', '.join(blocks)}")
    takers = [name for name, block in blocks.items() if "language" in block.model_fields]
    if language is not None and kind not in takers:
        raise ConfigError(f"--language: {kind} takes none; it is for {', '.join(takers)}")
    settings: dict[str, Any] = {} if language is None else {"language": language}
    if mapping is not None:
        settings |= read_yaml_mapping(
            mapping, "mapping", "README.md shows what it holds", "with task and columns; README.md shows one"
        )
    try:
        source: PathSource = blocks[kind].model_validate({"kind": kind, **settings, "path": path})
        return source
    except ValidationError as error:
        problems = "; ".join(explain(problem, blocks[kind]) for problem in error.errors())
        cure = "" if mapping else "; give its settings with --mapping FILE, as README.md shows"
        raise ConfigError(f"{mapping or f'a {kind}'}: {problems}{cure}") from error


def import_rows(source: SourceBlock, target: ImportContext, console: Console) -> "ImportCounts":
    """Import one source, with its progress shown."""
    with console.progress("import", None, "rows") as progress:
        counts: ImportCounts = IMPORTERS[source.kind].read(source, replace(target, on_rows=progress.update))
        return counts


def tell_counts(
    counts: "ImportCounts", source: SourceBlock, out_dir: Path, console: Console
) -> dict[str, Any]:
    """Say what became of every judgement; the same as plain values."""
    console.say(
        f"  imported {sum(counts.rows.values()):,} judged pairs from {source.title}: "
        + ", ".join(f"{t} {n:,}" for t, n in counts.rows.items())
    )
    if counts.quarantined:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.quarantined.items())
        console.say(f"  left out, with line and reason in {out_dir / 'quarantine'}: {reasons}")
    return {"judged": str(out_dir), "rows": dict(counts.rows), "quarantined": dict(counts.quarantined)}
