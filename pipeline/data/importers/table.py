"""Any table of query-ad pairs, csv, tsv, parquet or json lines, by a mapping of its columns and labels: a
`TableSource` block.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.error_messages import explain, read_yaml_mapping
from pipeline.config.sources import TableSource
from pipeline.data.importers.importer import ImportCounts, Row, Source, import_lines, required
from pipeline.data.importers.records import Line, check_file, read_parquet
from pipeline.data.importers.rejects import BadLineError
from pipeline.data.importers.text_cleaning import build_title, clean_line, clean_lines
from pipeline.data.importers.text_files import read_json_lines, read_separated
from pipeline.data.writer import OnRows, StagedRows
from pipeline.errors import ConfigError

_CLEANERS: dict[str, Callable[[str | None], str | None]] = {
    "ad_title": build_title,
    "ad_description": clean_lines,
    "landing_page": clean_lines,
}  # all other columns are one line of text

_EMPTY_REASONS = {
    "row_id": "empty_id",
    "query": "empty_query",
    "ad_title": "empty_title",
    "market": "empty_market",
}


def read_mapping(mapping: Path, path: Path) -> TableSource:
    """The source block in a YAML file, for the table `path`; ConfigError lists every problem."""
    value = read_yaml_mapping(
        mapping, "mapping", "README.md shows what it holds", "with task and columns; README.md shows one"
    )
    try:
        return TableSource.model_validate({"kind": "table", **value, "path": path})
    except ValidationError as error:
        raise ConfigError(
            f"{mapping}: " + "; ".join(explain(problem, TableSource) for problem in error.errors())
        ) from error


def import_table(
    source: TableSource,
    out_dir: Path,
    label_names: Sequence[str] | None = None,
    on_rows: OnRows | None = None,
) -> ImportCounts:
    """The lines of a table as rows of one task; `label_names` are the task's, worst first, where labels are
    mapped to names.

    Where no row_id is mapped, it is task, source and line number. Files of several sources of a task lie side
    by side. ConfigError: file absent, or the mapping does not fit. DamagedInputError: empty, not whole
    parquet, or its header is no text in the stated encoding. DataRefusedError: a column is missing or named
    twice, or as `import_lines`.
    """
    check_file(source.path)
    indices, name = source.label_indices(label_names), source.source_name

    def build_row(line: Line) -> tuple[str, Row]:
        return source.task, _build_row(line, source, indices)

    with StagedRows(out_dir, name, on_rows) as staged:
        return import_lines(
            Source(f"{source.task}-{name}", source.path, lambda: _read(source), build_row), staged
        )


def _read(source: TableSource) -> Iterator[Line]:
    columns, table_format = list(dict.fromkeys(source.columns.values())), source.find_format()
    if table_format == "parquet":
        return read_parquet(source.path, columns)
    if table_format == "jsonl":
        return read_json_lines(source.path, columns, source.encoding)
    return read_separated(source.path, columns, "\t" if table_format == "tsv" else ",", source.encoding)


def _build_row(line: Line, source: TableSource, indices: dict[str, int | None]) -> Row:
    row: Row = {"row_id": f"{source.task}-{source.source_name}-{line.number}", **source.constants}
    for column, name in source.columns.items():
        row[column] = _value(column, line.fields[name], indices)
    return row


def _value(column: str, text: str | None, indices: dict[str, int | None]) -> Any:
    """What a row holds in a column where its source holds `text`."""
    if column == "label":
        key = (text or "").strip()
        if key not in indices:
            raise BadLineError("unknown_label")
        return indices[key]
    if column == "weight":
        return _weight(text)
    cleaned = _CLEANERS.get(column, clean_line)(text)
    return required(cleaned, _EMPTY_REASONS[column]) if column in _EMPTY_REASONS else cleaned


def _weight(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise BadLineError("bad_weight") from error
