"""Bring in the rows that a config names: `relevance sample`, `relevance import`, and the first stage of
`relevance run`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.config.sources import (
    ChorusSource,
    EsciSource,
    QadsmSource,
    SampleSource,
    Source,
    TableSource,
    WandsSource,
)

if TYPE_CHECKING:
    from pipeline.data.importers.importer import ImportCounts
    from pipeline.data.writer import OnRows


def bring_in(config: RunConfig, console: Console) -> dict[str, Any]:
    """Write the rows of every source of the config into the run's data folder."""
    labels = {task.name: task.labels for task in config.tasks}
    for source in config.sources:
        if isinstance(source, SampleSource):
            sample(
                config.run_dir / "data",
                source.rows_per_task,
                source.unlabelled_rows_per_task,
                config.seed,
                console,
            )
        else:
            names = labels[source.task] if isinstance(source, TableSource) else None
            tell_counts(
                import_rows(source, config.judged_dir, console, names),
                source.path,
                config.judged_dir,
                console,
            )
    return {"judged": str(config.judged_dir)}


def sample(
    out_dir: Path, rows_per_task: int, unlabelled_rows_per_task: int, seed: int, console: Console
) -> dict[str, Any]:
    """Write the made-up ads marketplace."""
    from pipeline.data.synthetic.marketplace import build_marketplace, write_marketplace

    marketplace = build_marketplace(rows_per_task, unlabelled_rows_per_task, seed)
    write_marketplace(marketplace, out_dir)
    rows = {name: table.num_rows for name, table in marketplace.rows.items()}
    console.say(f"  made up {sum(rows.values()):,} judged pairs of {len(rows)} tasks in {out_dir / 'judged'}")
    return {"judged": str(out_dir / "judged"), "unlabelled": str(out_dir / "unlabelled"), "rows": rows}


def import_source(
    kind: str,
    path: Path,
    out_dir: Path,
    console: Console,
    mapping: Path | None = None,
    language: str | None = None,
) -> dict[str, Any]:
    """Import one outside source into contract rows; `mapping` is of a table, `language` of qadsm."""
    return tell_counts(
        import_rows(build_source(kind, path, mapping, language), out_dir, console), path, out_dir, console
    )


def build_source(kind: str, path: Path, mapping: Path | None, language: str | None) -> Source:
    """The source block that the command line describes."""
    from pipeline.data.importers.table import read_mapping

    if kind == "table" and mapping is not None:
        return read_mapping(mapping, path)
    if kind == "qadsm":
        return QadsmSource(kind="qadsm", path=path, language=language)
    if kind == "wands":
        return WandsSource(kind="wands", path=path)
    return EsciSource(kind="esci", path=path) if kind == "esci" else ChorusSource(kind="chorus", path=path)


def import_rows(
    source: Source, out_dir: Path, console: Console, label_names: tuple[str, ...] | None = None
) -> "ImportCounts":
    """Import one source; `label_names` are those of a table's task where they are known."""
    with console.progress("import", None, "rows") as progress:
        return import_by_kind(source, out_dir, label_names, progress.update)


def import_by_kind(
    source: Source, out_dir: Path, label_names: tuple[str, ...] | None, on_rows: "OnRows"
) -> "ImportCounts":
    """What the import of a source's kind makes of it."""
    from pipeline.data.importers.chorus import import_chorus
    from pipeline.data.importers.esci import import_esci
    from pipeline.data.importers.qadsm import import_qadsm
    from pipeline.data.importers.table import import_table
    from pipeline.data.importers.wands import import_wands

    if isinstance(source, TableSource):
        return import_table(source, out_dir, label_names, on_rows)
    if isinstance(source, QadsmSource):
        return import_qadsm(source.path, out_dir, source.language, on_rows)
    if isinstance(source, WandsSource):
        return import_wands(source.path, out_dir, on_rows)
    if isinstance(source, EsciSource):
        return import_esci(source.path, out_dir, on_rows)
    assert isinstance(source, ChorusSource), source
    return import_chorus(source.path, out_dir, on_rows)


def tell_counts(counts: "ImportCounts", path: Path, out_dir: Path, console: Console) -> dict[str, Any]:
    """Say what became of every judgement; the same as plain values."""
    console.say(
        f"  imported {sum(counts.rows.values()):,} judged pairs from {path}: "
        + ", ".join(f"{t} {n:,}" for t, n in counts.rows.items())
    )
    if counts.quarantined:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.quarantined.items())
        console.say(f"  left out, with line and reason in {out_dir / 'quarantine'}: {reasons}")
    return {"judged": str(out_dir), "rows": dict(counts.rows), "quarantined": dict(counts.quarantined)}
