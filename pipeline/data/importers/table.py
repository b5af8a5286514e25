"""Any table of query-ad pairs, csv, tsv, parquet or json lines, by a mapping of its columns and labels: a
`TableSource` block.
"""

import codecs
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource, checked_name
from pipeline.config.tasks import Task
from pipeline.data.importers.importer import ImportCounts, Row, Source, import_lines, required
from pipeline.data.importers.records import Line, check_file, read_parquet
from pipeline.data.importers.rejects import BadLineError
from pipeline.data.importers.text_cleaning import build_title, clean_line, clean_lines
from pipeline.data.importers.text_files import read_json_lines, read_separated
from pipeline.data.writer import OnRows, StagedRows
from pipeline.errors import ConfigError
from pipeline.schema import COLUMNS, MAX_LABELS

TableFormat = Literal["csv", "tsv", "parquet", "jsonl"]

_REQUIRED = ("query", "ad_title", "market")


def checked_column(name: str) -> str:
    """The name of a contract column; ValueError with the nearest one if it is none."""
    names = [column.name for column in COLUMNS]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(
            f"{name} is not a column of a row; "
            + (f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}")
        )
    return name


def checked_encoding(name: str) -> str:
    """The name of an encoding of text that Python knows."""
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except LookupError:
        pass
    raise ValueError(f"{name} is not an encoding of text; such are utf-8, latin-1, cp1252, shift_jis, utf-16")


def with_text_keys(labels: Any) -> Any:
    """Labels of a source by their text: YAML reads a bare 1 as a number, and a bare yes as a truth value."""
    if isinstance(labels, dict) and any(isinstance(key, bool | float) or key is None for key in labels):
        raise ValueError(
            "a label of the source that YAML takes for something else needs quotes, such as 'yes', '1.0' "
            "or 'null'"
        )
    return {str(key): value for key, value in labels.items()} if isinstance(labels, dict) else labels


ColumnName = Annotated[str, AfterValidator(checked_column)]


class TableSource(PathSource):
    """Any table with a query, an ad and a market in each line."""

    kind: Literal["table"]
    # whose rows these are
    task: Annotated[str, AfterValidator(lambda name: checked_name(name, "task"))]
    # of its files and row ids; default: of the file
    name: Annotated[str, AfterValidator(lambda name: checked_name(name, "source"))] | None = None
    format: TableFormat | None = None  # default: by the end of the file's name
    encoding: Annotated[str, AfterValidator(checked_encoding)] = "utf-8"  # of text; parquet has its own
    # column of a row -> column of the source; without row_id, the line's number makes one
    columns: dict[ColumnName, str]
    # source's label -> name or index; null: to be scored
    labels: Annotated[dict[str, str | int | None], BeforeValidator(with_text_keys)] = {}
    constants: dict[ColumnName, str | int | float] = {}  # column of a row -> what every row holds there

    @model_validator(mode="after")
    def _every_row_is_whole(self) -> "TableSource":
        given = {*self.columns, *self.constants}
        missing = [name for name in _REQUIRED if name not in given]
        if missing:
            raise ValueError(
                f"no column gives {', '.join(missing)}; name one in columns, or a value for all rows in "
                "constants"
            )
        both = sorted({*self.columns} & {*self.constants})
        if both:
            raise ValueError(f"constants must leave out {', '.join(both)}: columns gives it")
        if "row_id" in self.constants:
            raise ValueError("constants must leave out row_id: ids differ from row to row")
        for name, value in self.constants.items():
            kind, told = {"label": (int, "an index"), "weight": (int | float, "a number")}.get(
                name, (str, "a text")
            )
            if not isinstance(value, kind):
                raise ValueError(f"constants.{name} must be {told}")
        return self

    @property
    def published_as(self) -> tuple[str, str]:
        return self.task, self.source_name

    def check(self, tasks: Sequence[Task]) -> None:
        names = {task.name: task.labels for task in tasks}
        if self.task not in names:
            raise ValueError(
                f"source {self.path} is of task {self.task!r}, which is not configured; configured: "
                f"{', '.join(names)}"
            )
        try:
            self.label_indices(names[self.task])
            self.find_format()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def source_name(self) -> str:
        """What names the partitions, row ids and quarantine of this source."""
        return self.name or re.sub(r"[^a-z0-9_-]+", "-", self.path.stem.lower()).strip("-_")[:63] or "table"

    def find_format(self) -> TableFormat:
        """The format; ConfigError if neither the block nor the file's name says it."""
        if self.format:
            return self.format
        for known in ("csv", "tsv", "parquet", "jsonl"):
            if self.path.suffix.lower() == f".{known}":
                return known
        raise ConfigError(
            f"the name of {self.path} does not say its format; add format: csv, tsv, parquet or jsonl to "
            "its source block"
        )

    def label_indices(self, label_names: Sequence[str] | None) -> dict[str, int | None]:
        """The index of each of the source's labels; where none is mapped, indices are written as numbers.
        ConfigError: a name is unknown.
        """
        if not self.labels:
            return {str(index): index for index in range(len(label_names or ()) or MAX_LABELS)}
        return {text: self._label_index(label, label_names) for text, label in self.labels.items()}

    def _label_index(self, label: str | int | None, label_names: Sequence[str] | None) -> int | None:
        if isinstance(label, str) and label_names is None:
            said = f"label {label!r} of task {self.task} is a name, and only the config of a run knows names"
            raise ConfigError(f"{said}; give its index, 0 for the worst")
        known = list(label_names or ())
        if isinstance(label, str) and label not in known:
            raise ConfigError(
                f"label {label!r} is not one of task {self.task}; its labels: {', '.join(known)}"
            )
        index = known.index(label) if isinstance(label, str) else label
        num_labels = len(known) or MAX_LABELS
        if index is not None and not 0 <= index < num_labels:
            raise ConfigError(
                f"label {index} lies outside the scale of task {self.task}; indices go from 0 to "
                f"{num_labels - 1}"
            )
        return index


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


IMPORTERS.register(
    "table",
    Importer(
        TableSource,
        lambda source, target: import_table(
            source, target.judged_dir, target.labels_of(source.task), target.on_rows
        ),
    ),
)
