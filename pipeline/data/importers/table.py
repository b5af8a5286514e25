"""Import any table of query-ad pairs by a mapping of its columns and labels.

Formats are csv, tsv, parquet, json lines and json arrays; text may be compressed with gzip. A folder
holds the parts of one table. Files whose names begin with . or _ are no parts, as Spark writes them; those
that are not of Spark or Hadoop are named in the log.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.config.strict_model import validate_name
from pipeline.config.tasks import Task
from pipeline.data.data_files import is_bookkeeping, list_some
from pipeline.data.importers.importer import ImportCounts, RecordSource, Row, import_records, require_text
from pipeline.data.importers.json_files import read_json
from pipeline.data.importers.records import SourceRecord, check_file, read_parquet
from pipeline.data.importers.rejects import BadRecordError
from pipeline.data.importers.text_cleaning import build_title, clean_line, clean_lines
from pipeline.data.importers.text_files import Quoting, TextFormat, read_delimited
from pipeline.data.reader import log_once
from pipeline.data.row_conversion import is_lost_in_float32
from pipeline.data.writer import StagedRows
from pipeline.errors import ConfigError
from pipeline.runtime.progress import ProgressBar
from pipeline.schema import COLUMNS, MAX_LABELS

TableFormat = Literal["csv", "tsv", "parquet", "jsonl", "json"]

_FORMATS: dict[str, TableFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}

_DELIMITERS = {"csv": ",", "tsv": "\t"}

_REQUIRED = ("query", "ad_title", "market")

_RANGES = {
    column.name: (column.minimum, column.maximum)
    for column in COLUMNS
    if column.minimum is not None and column.maximum is not None
}

_CONSTANT_TYPES: dict[str, tuple[Any, str]] = {
    "label": (int, "an index"),
    "weight": (int | float, "a number"),
}


def validate_column(name: str) -> str:
    """Return the name of a contract column; raise ValueError with the nearest name if it is unknown."""
    names = [column.name for column in COLUMNS]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"{name} is not a column of a row; {hint}")
    return name


def validate_encoding(name: str) -> str:
    """Return the name of a text encoding; raise ValueError if Python does not know it."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(
            f"{name} is not an encoding of text; use utf-8, latin-1, cp1252, shift_jis or utf-16, for example"
        ) from error
    return name


def validate_delimiter(text: str) -> str:
    """Return a delimiter of fields; raise ValueError unless it is one character that no field needs."""
    if len(text) != 1 or text in '"\r\n':
        raise ValueError(
            f'{text!r} is not one character between fields; use "," or ";" or "\\t", for example'
        )
    return text


def stringify_labels(labels: Any) -> Any:
    """Return a mapping of labels with text keys; YAML reads a bare 1 as a number.

    Raises:
        ValueError: YAML has changed a key, such as a bare yes, 1.0 or null, or two keys are one text.
    """
    if not isinstance(labels, dict):
        return labels
    if any(isinstance(key, bool) or not isinstance(key, str | int) for key in labels):
        raise ValueError(
            "a label of the source that YAML takes for something else needs quotes, such as 'yes', '1.0' "
            "or 'null'"
        )
    if twice := [f"{key} and '{key}'" for key in labels if isinstance(key, int) and str(key) in labels]:
        raise ValueError(f"labels of the source are one text: {', '.join(twice)}; keep one of each")
    return {str(key): value for key, value in labels.items()}


ColumnName = Annotated[str, AfterValidator(validate_column)]


class TableSource(PathSource):
    """Table with a query, an ad and a market in each line."""

    kind: Literal["table"]
    # the task of all rows
    task: Annotated[str, AfterValidator(lambda name: validate_name(name, "task"))]
    # used in file names and row ids; default: from the file name
    name: Annotated[str, AfterValidator(lambda name: validate_name(name, "source"))] | None = None
    format: TableFormat | None = None  # default: from the file name; json may be lines or one array
    encoding: Annotated[str, AfterValidator(validate_encoding)] = "utf-8"  # of text files
    # of csv and tsv; line: a quoted field ends in its line; csv: it may hold line breaks; none: quotes are
    # plain characters
    quoting: Quoting = "line"
    # of csv and tsv, one character; default: a comma for csv, a tab for tsv
    delimiter: Annotated[str, AfterValidator(validate_delimiter)] | None = None
    # column of a row -> column of the source; without row_id, the line number is used
    columns: dict[ColumnName, str]
    # label of the source -> label name or index; null: to be scored
    labels: Annotated[dict[str, str | int | None], BeforeValidator(stringify_labels)] = {}
    constants: dict[ColumnName, str | int | float] = {}  # column of a row -> value in every row

    @model_validator(mode="after")
    def _check_columns(self) -> "TableSource":
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
            kind, description = _CONSTANT_TYPES.get(name, (str, "a text; quote it, such as 'no' or '1'"))
            if not isinstance(value, kind):
                raise ValueError(f"constants.{name} must be {description}")
            if name in _EMPTY_REASONS and not _clean(name, str(value)):
                raise ValueError(f"constants.{name} must not be empty")
            if name in _RANGES and not _RANGES[name][0] <= float(value) <= _RANGES[name][1]:
                low, high = _RANGES[name]
                raise ValueError(f"constants.{name} is {value}, outside {low:g} to {high:g}")
            if name == "weight" and is_lost_in_float32(float(value)):
                raise ValueError(f"constants.weight is {value}, which float32 makes 0; use 0 or more")
        return self

    @property
    def output_name(self) -> str:
        # with a point, which no name holds: task a-b and name c differ from task a and name b-c
        return f"{self.task}.{self.source_name}"

    def check(self, tasks: Sequence[Task]) -> None:
        names = {task.name: task.labels for task in tasks}
        if self.task not in names:
            raise ValueError(
                f"source {self.path} is of task {self.task!r}, which is not configured; configured: "
                f"{', '.join(names)}"
            )
        try:
            self.label_indices(names[self.task])
            label = self.constants.get("label")
            if isinstance(label, int):
                self._label_index(label, names[self.task])
            # a missing path may be a folder of parts, which names no format
            if self.path.suffix or self.path.exists():
                self.find_format()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def source_name(self) -> str:
        """The name of this source in file names and row ids."""
        if self.name:
            return self.name
        stem = _without_gz(self.path).stem
        return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:63] or "table"

    def find_parts(self) -> list[Path]:
        """Return the files of the table, sorted.

        Raises:
            ConfigError: There is none, or the folder holds something else.
        """
        if not self.path.is_dir():
            return [check_file(self.path)]
        entries = sorted(path for path in self.path.iterdir() if not is_bookkeeping(path.name))
        parts = [path for path in entries if path.name[0] not in "._"]
        if hidden := [path.name for path in entries if path.name[0] in "._"]:
            log_once(
                f"{len(hidden):,} entries of {self.path} are not read: {list_some(hidden)}; names of parts "
                "begin with neither . nor _: rename those that are"
            )
        if not parts:
            raise ConfigError(f"{self.path} holds no file; name a file, or a folder of the parts of a table")
        formats = {
            path: None if path.is_dir() else _FORMATS.get(_without_gz(path).suffix.lower()) for path in parts
        }
        table_format = self.format or next(filter(None, formats.values()), None)
        for path, known in formats.items():
            if not path.is_file() or (known != table_format and not (self.format and known is None)):
                raise ConfigError(
                    f"{path} is not {table_format or 'a table'} like the other parts of its folder; "
                    "move it elsewhere"
                )
        return parts

    def find_format(self) -> TableFormat:
        """Return the format of the table.

        Raises:
            ConfigError: Neither the block nor the file name gives it, or it has no use for a setting.
        """
        path = self.find_parts()[0] if self.path.is_dir() else self.path
        known = self.format or _FORMATS.get(_without_gz(path).suffix.lower())
        if known is None:
            raise ConfigError(
                f"format of {path} unknown; add format: csv, tsv, parquet, jsonl or json to its source block"
            )
        self._check_text_settings(known)
        return known

    def _check_text_settings(self, table_format: TableFormat) -> None:
        if table_format not in _DELIMITERS and (self.delimiter is not None or self.quoting != "line"):
            raise ConfigError(
                f"{self.path} is {table_format}, which has no quoting and no delimiter; remove both settings"
            )

    def label_indices(self, label_names: Sequence[str] | None) -> dict[str, int | None]:
        """Return the index of each label of the source; without a mapping the labels are indices.

        Raises:
            ConfigError: A label name or index is unknown.
        """
        if not self.labels:
            num_labels = len(label_names or ()) or MAX_LABELS
            # a flag is an index of two labels; whole numbers beside nulls are 1.0 in some csv files
            indices: dict[str, int | None] = {}
            for index in range(num_labels):
                indices |= {str(index): index, f"{index}.0": index}
            for index, flag in enumerate(("false", "true")[:num_labels]):
                indices |= {flag: index, flag.capitalize(): index}
            return indices
        return {text: self._label_index(label, label_names) for text, label in self.labels.items()}

    def _label_index(self, label: str | int | None, label_names: Sequence[str] | None) -> int | None:
        if isinstance(label, str) and label_names is None:
            raise ConfigError(
                f"label {label!r} of task {self.task} is a name, and only the config of a run has names; "
                "give its index, 0 for the worst"
            )
        known = list(label_names or ())
        if isinstance(label, str) and label not in known:
            raise ConfigError(
                f"label {label!r} is not one of task {self.task}; its labels: {', '.join(known)}"
            )
        index = known.index(label) if isinstance(label, str) else label
        num_labels = len(known) or MAX_LABELS
        if index is not None and not 0 <= index < num_labels:
            raise ConfigError(
                f"label {index} is outside the scale of task {self.task}; indices are 0 to {num_labels - 1}"
            )
        return index


def _without_gz(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


_CLEANERS: dict[str, Callable[[str | None], str | None]] = {
    "ad_title": build_title,
    "ad_description": clean_lines,
    "landing_page": clean_lines,
}  # every other column is one line of text

_EMPTY_REASONS = {
    "row_id": "empty_id",
    "query": "empty_query",
    "ad_title": "empty_title",
    "market": "empty_market",
}


def import_table(
    source: TableSource,
    out_dir: Path | str,
    label_names: Sequence[str] | None = None,
    bar: ProgressBar | None = None,
) -> ImportCounts:
    """Publish the lines of a table as rows of one task.

    Without a mapped row_id it is task, source name and line number with points between them, and the name of
    the part before the number if the source is a folder. Several sources of a task can share a data folder.

    Args:
        label_names: Labels of the task, worst first; needed if the mapping has label names.

    Raises:
        ConfigError: The file does not exist, or the mapping does not fit.
        DamagedInputError: The file is empty or not whole parquet, or its header is not text in the encoding.
        DataRefusedError: A column is missing or repeated, or see `import_records`.
    """
    parts, table_format = source.find_parts(), source.find_format()
    indices = source.label_indices(label_names)

    def build_row(record: SourceRecord) -> tuple[str, Row]:
        return source.task, _build_row(record, source, indices)

    with StagedRows(out_dir, source.source_name, bar) as staged:
        return import_records(
            RecordSource(
                source.output_name, source.path, lambda: _read(source, parts, table_format), build_row
            ),
            staged,
        )


def _read(source: TableSource, parts: Sequence[Path], table_format: TableFormat) -> Iterator[SourceRecord]:
    columns = list(dict.fromkeys(source.columns.values()))
    for path in parts:
        part = path.name if source.path.is_dir() else ""
        for record in _read_part(source, path, table_format, columns):
            yield record._replace(part=part) if part else record


def _read_part(
    source: TableSource, path: Path, table_format: TableFormat, columns: Sequence[str]
) -> Iterator[SourceRecord]:
    if table_format == "parquet":
        return read_parquet(path, columns)
    if table_format in ("json", "jsonl"):
        return read_json(path, columns, source.encoding)
    delimiter = source.delimiter or _DELIMITERS[table_format]
    return read_delimited(path, columns, TextFormat(delimiter, source.quoting, source.encoding))


def _build_row(record: SourceRecord, source: TableSource, indices: dict[str, int | None]) -> Row:
    place = f"{record.part}.{record.number}" if record.part else str(record.number)
    row: Row = {"row_id": f"{source.output_name}.{place}"}
    for column, value in source.constants.items():
        row[column] = _clean(column, value) if isinstance(value, str) else value
    for column, name in source.columns.items():
        row[column] = _convert(column, record.fields[name], indices)
    return row


def _convert(column: str, text: str | None, indices: dict[str, int | None]) -> Any:
    """Convert `text` of a source to the value of a column."""
    if column == "label":
        key = (text or "").strip()
        if key not in indices:
            raise BadRecordError("unknown_label")
        return indices[key]
    if column == "weight":
        return _parse_weight(text)
    cleaned = _clean(column, text)
    return require_text(cleaned, _EMPTY_REASONS[column]) if column in _EMPTY_REASONS else cleaned


def _clean(column: str, text: str | None) -> str | None:
    return _CLEANERS.get(column, clean_line)(text)


def _parse_weight(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        weight = float(text)
    except ValueError as error:
        raise BadRecordError("bad_weight") from error
    if not math.isfinite(weight) or is_lost_in_float32(weight):
        raise BadRecordError("bad_weight")
    return weight


IMPORTERS.register(
    "table",
    Importer(
        TableSource,
        lambda source, context: import_table(
            source, context.judged_dir, context.labels_of(source.task), context.bar
        ),
    ),
)
