"""Config blocks of the sources that a run can bring in."""

import codecs
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.strict_model import Frozen
from pipeline.config.tasks import Task
from pipeline.errors import ConfigError
from pipeline.names import check_name
from pipeline.schema import COLUMNS, MAX_LABELS

TableFormat = Literal["csv", "tsv", "parquet", "jsonl"]

_REQUIRED = ("query", "ad_title", "market")


def checked_name(name: str, what: str) -> str:
    """`check_name` in the form pydantic reports."""
    try:
        return check_name(name, what)
    except ConfigError as error:
        raise ValueError(str(error)) from error


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


class SampleSource(Frozen):
    """The made-up ads marketplace."""

    kind: Literal["sample"]
    rows_per_task: int = Field(ge=1)  # judged rows
    unlabelled_rows_per_task: int = Field(ge=0)  # rows to be scored


class EsciSource(Frozen):
    """A folder in the two-file layout of the Amazon Shopping Queries data."""

    kind: Literal["esci"]
    path: Path


class ChorusSource(Frozen):
    """The ratings file of the Chorus electronics shop."""

    kind: Literal["chorus"]
    path: Path


class WandsSource(Frozen):
    """The folder of WANDS with query.csv, product.csv and label.csv."""

    kind: Literal["wands"]
    path: Path


class QadsmSource(Frozen):
    """One file of XGLUE's QADSM."""

    kind: Literal["qadsm"]
    path: Path
    language: str | None = None  # two letters; default: from a name such as xglue.qadsm.en.train


class TableSource(Frozen):
    """Any table with a query, an ad and a market in each line."""

    kind: Literal["table"]
    path: Path
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


Source = Annotated[
    SampleSource | EsciSource | ChorusSource | WandsSource | QadsmSource | TableSource,
    Field(discriminator="kind"),
]


def check_table_sources(sources: Sequence[Any], tasks: Sequence[Task]) -> None:
    """ValueError: a table is of a task that is not configured, maps to a label the task does not have, or
    overwrites another's rows.
    """
    names = {task.name: task.labels for task in tasks}
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if not isinstance(source, TableSource):
            continue
        if source.task not in names:
            raise ValueError(
                f"source {source.path} is of task {source.task!r}, which is not configured; configured: "
                f"{', '.join(names)}"
            )
        if (source.task, source.source_name) in seen:
            raise ValueError(
                f"two sources of task {source.task} are named {source.source_name}; give one of them "
                "another name"
            )
        seen.add((source.task, source.source_name))
        try:
            source.label_indices(names[source.task])
            source.find_format()
        except ConfigError as error:
            raise ValueError(str(error)) from error
