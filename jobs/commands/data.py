"""Import rows: `relevance sample`, `relevance import`, and the sources that a config names."""

import functools
import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import pipeline.data
from jobs.command_run import CommandRun
from models.files import file_sha256
from pipeline.config.error_messages import describe_problem
from pipeline.config.extensions import IMPORTERS, ImportContext, load_importers
from pipeline.config.paths import parse_location
from pipeline.config.run import RunConfig
from pipeline.config.sources import PathSource, SourceBlock
from pipeline.config.yaml_files import booleans_taken_as_numbers, read_yaml_mapping
from pipeline.data.data_files import QUARANTINE
from pipeline.data.import_places import open_import_place
from pipeline.data.row_files import RowFile, find_row_files
from pipeline.data.staging import StagingFolder, list_imported
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.names import is_bucket
from pipeline.storage.filesystem import json_sha256, list_files, read_json, write_json

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipeline.data.importers.importer import ImportCounts

SECTION = "pipeline/data/importers/README.md"  # shows the settings of a table


def import_sources(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Import the sources of a config into its judged rows, unless the same import was done before.

    <run>/data/sources.json holds the digest of each source's content, settings and importer, the digest of
    the rows that came out, and the names of their files. If the digests are equal the rows are used as they
    are. If not, all sources are imported, and their files replace the recorded ones in one step: nothing
    stays of a source that was removed or wrote elsewhere.

    Raises:
        ConfigError: `data.judged` holds rows that this run did not import, or one source would replace the
            rows of another.
    """
    summary = {"judged": str(config.judged_location)}
    if not config.sources:
        return summary
    load_importers()
    path = config.run_dir / "data" / "sources.json"
    record = _read_record(path, config)
    digests = [source_digest(source, config) for source in config.sources]
    if (record["sources"], record["rows"]) == (digests, rows_digest(config)):
        logger.info("  sources unchanged: rows of an earlier import are used")
        return summary
    with StagingFolder(config.judged_location, "sources") as staging:
        _import_all(config, staging.dir, run)
        files = list_imported(staging.dir)
        # from here on the old and the new files are this run's, also if it is killed
        write_json(path, {"sources": [], "rows": None, "files": sorted({*record["files"], *files})})
        staging.publish_folder(record["files"])
    write_json(path, {"sources": digests, "rows": rows_digest(config), "files": files})
    return summary


def _read_record(path: Path, config: RunConfig) -> dict[str, Any]:
    """Return what sources.json says about the rows of earlier imports."""
    place = config.judged_location
    if path.is_file():
        record: dict[str, Any] = read_json(path)
        return record if "files" in record else {**record, "files": list_imported(place)}
    if config.data.judged and open_import_place(place).names():
        raise ConfigError(
            f"data.judged holds rows that this run did not import: {place}; remove `sources` from the "
            "config to use them, or name an empty place"
        )
    return {"sources": [], "rows": None, "files": []}


def _import_all(config: RunConfig, out_dir: Path, run: CommandRun) -> None:
    """Import all sources of a config into an empty folder."""
    labels = {task.name: task.labels for task in config.tasks}
    listed: set[str] = set()
    for source in config.sources:
        context = ImportContext(out_dir, config.run_dir / "data", config.seed, labels)
        log_counts(import_rows(source, context, run), source, config.judged_location)
        files = {*list_imported(out_dir)}
        if replaced := sorted(listed - files):
            raise ConfigError(
                f"rows of {source.title} replace {replaced[0]} of another source; keep one of the two, or "
                "give its importer other file names"
            )
        listed = files


def source_digest(source: SourceBlock, config: RunConfig) -> str:
    """Return a digest of all that decides a source's rows: files, settings, code of imports, labels, seed."""
    files: list[list[str]] = []
    if isinstance(source, PathSource):
        if source.path.is_dir():
            paths = [path for path in list_files(source.path) if path.is_file()]
        else:
            paths = [source.path] if source.path.is_file() else []
        files = [[str(path.relative_to(source.path)), file_sha256(path)] for path in paths]
    module = inspect.getsourcefile(type(source))
    return json_sha256(
        {
            "block": source.model_dump(mode="json"),
            "files": files,
            "importer": file_sha256(Path(module)) if module else "",
            "import code": import_code_digest(),
            "labels": {task.name: list(task.labels) for task in config.tasks},
            "seed": config.seed,
        }
    )


@functools.cache
def import_code_digest() -> str:
    """Return a digest of the modules that importers share."""
    folder = Path(pipeline.data.__file__).parent
    return json_sha256(
        [[str(path.relative_to(folder)), file_sha256(path)] for path in sorted(folder.rglob("*.py"))]
    )


def rows_digest(config: RunConfig) -> str | None:
    """Return the digest of the judged rows; None if they are not there or not readable.

    Raises:
        ConfigError: The bucket, or the account, is wrong.
        RetryableError: The object store fails.
    """
    if not open_import_place(config.judged_location).names():
        return None
    try:
        found = find_row_files(config.judged_location, config.tasks)
    except RetryableError:
        raise
    except RelevanceError:
        return None
    return json_sha256(
        {task: sorted(map(RowFile.content_key, files)) for task, files in found.by_task.items()}
    )


def sample(
    out_dir: Path, rows_per_task: int, unlabelled_rows_per_task: int, seed: int, run: CommandRun
) -> dict[str, Any]:
    """Write the synthetic ads marketplace."""
    load_importers()
    source = IMPORTERS["sample"].block(
        kind="sample", rows_per_task=rows_per_task, unlabelled_rows_per_task=unlabelled_rows_per_task
    )
    context = ImportContext(out_dir / "judged", out_dir, seed)
    summary = log_counts(import_rows(source, context, run), source, context.judged_dir)
    next_command = f"relevance run --config CONFIG.yaml --set data.judged={context.judged_dir}"
    return {**summary, "unlabelled": str(out_dir / "unlabelled"), "next": next_command}


def import_source(
    kind: str,
    path: Path,
    out: str,
    run: CommandRun,
    mapping: Path | None = None,
    language: str | None = None,
) -> dict[str, Any]:
    """Import one published data set into contract rows, in a folder or at s3://bucket/prefix."""
    try:
        parse_location(out)
    except ValueError as error:
        raise ConfigError(f"OUT_DIR: {error}") from error
    out_dir = out if is_bucket(out) else Path(out)
    source = build_source(kind, path, mapping, language)
    data_dir = Path("runs", "data") if is_bucket(out_dir) else Path(out_dir)
    summary = log_counts(import_rows(source, ImportContext(out_dir, data_dir), run), source, out_dir)
    return {**summary, "next": f"relevance validate --config CONFIG.yaml --set data.judged={out_dir}"}


def build_source(kind: str, path: Path, mapping: Path | None, language: str | None) -> PathSource:
    """Return the source block that the command line describes; ConfigError if it is not valid."""
    load_importers()
    blocks = {
        name: importer.block
        for name, importer in sorted(IMPORTERS.items())
        if issubclass(importer.block, PathSource)
    }
    if kind not in blocks:
        raise ConfigError(f"source kind unknown: {kind!r}; known: {', '.join(blocks)}")
    with_language = [name for name, block in blocks.items() if "language" in block.model_fields]
    if language is not None and kind not in with_language:
        raise ConfigError(f"--language not supported: {kind}; it is for {', '.join(with_language)}")
    settings: dict[str, Any] = {} if language is None else {"language": language}
    if mapping is not None:
        settings |= read_yaml_mapping(
            mapping, "mapping", f"{SECTION} shows its settings", f"with task and columns; {SECTION} shows one"
        )
    try:
        source: PathSource = blocks[kind].model_validate({"kind": kind, **settings, "path": path})
    except ValidationError as error:
        problems = "; ".join(describe_problem(problem, blocks[kind]) for problem in error.errors())
        cure = "" if mapping else f"; give its settings with --mapping FILE, as {SECTION} shows"
        raise ConfigError(f"{mapping or f'source {kind}'}: {problems}{cure}") from error
    if wrong := [*booleans_taken_as_numbers(settings, source)]:
        raise ConfigError(f"{mapping}: {'; '.join(wrong)}")
    return source


def import_rows(source: SourceBlock, context: ImportContext, run: CommandRun) -> "ImportCounts":
    """Import one source and show the progress."""
    with run.track("import", None, "rows") as bar:
        counts: ImportCounts = IMPORTERS[source.kind].read(source, replace(context, bar=bar))
    run.set_counts(rows=sum(counts.rows.values()))
    return counts


def log_counts(counts: "ImportCounts", source: SourceBlock, out_dir: Path | str) -> dict[str, Any]:
    """Log the numbers of imported and rejected records; return them as JSON."""
    by_task = ", ".join(f"{task} {number:,}" for task, number in counts.rows.items())
    logger.info(f"  imported {sum(counts.rows.values()):,} judged pairs from {source.title}: {by_task}")
    if counts.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.rejected.items())
        logger.info(f"  rejected records, with line and reason in {out_dir}/{QUARANTINE}: {reasons}")
    return {"judged": str(out_dir), "rows": dict(counts.rows), "quarantined": dict(counts.rejected)}
