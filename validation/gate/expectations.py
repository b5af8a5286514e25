"""What a good row is, said once and generated from the row contract and the task.

A `Check` carries the same promise twice: as a Great Expectations expectation, which holds the verdict and the
Data Docs, and as a vectorised Arrow mask, which names the rows. The gate runs both and refuses the data if
they ever disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.extensions import DATA_CHECKS, load_installed_extensions
from pipeline.config.tasks import Task
from pipeline.schema import COLUMNS, ROW_SCHEMA, Column
from validation.text.text_bytes import holds_nul

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

# Great Expectations names a pandas Arrow type by its Python type; widths are compared on the files' Arrow
# schema instead.
GX_TYPES: dict[pa.DataType, str] = {pa.string(): "str", pa.int32(): "int", pa.float32(): "float"}

# One character that leaves a mark: not control, not white space, not zero-width. Written out because RE2
# (pyarrow) and Python disagree on what \s is, and above \xff as the characters themselves because RE2 knows
# no \u.
VISIBLE = (
    r"[^\x00-\x20\x7f-\xa0\xad"
    "\u115f\u1160\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufeff\uffa0]"
)

NUL = "\x00"

PLAIN_STARTS = pa.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))

Mask = Callable[[pa.ChunkedArray], pa.ChunkedArray]


@dataclass(frozen=True)
class Check:
    """One promise about a column, or about the table if `column` is empty."""

    name: str  # such as query_not_null; stable, carried by the expectation as meta
    column: str
    promise: str  # reads on after "must"
    expectation: str  # class in great_expectations.expectations
    settings: Mapping[str, Any]  # its arguments, the column left out
    failing: Mask | None = None  # rows that break the promise; None where no single row does


# (task, whether each row must carry a label) -> the promises that rows of the task must keep
CheckBuilder = Callable[[Task, bool], Iterable[Check]]


def data_check(builder: CheckBuilder) -> CheckBuilder:
    """Register checks: all rows must keep their promises. ValueError: another builder has the function's
    name.
    """
    return DATA_CHECKS.register(builder.__name__, builder)  # type: ignore[no-any-return]


def build_checks(task: Task, judged: bool = True) -> tuple[Check, ...]:
    """Every promise rows of `task` must keep; `judged` data also promise a label in each row."""
    load_installed_extensions()
    return tuple(check for builder in DATA_CHECKS.values() for check in builder(task, judged))


_COLUMNS_CHECK = Check(
    "columns",
    "",
    f"hold exactly the columns {', '.join(ROW_SCHEMA.names)}, in this order",
    "ExpectTableColumnsToMatchOrderedList",
    {"column_list": ROW_SCHEMA.names},
)


@data_check
def table_shape(task: Task, judged: bool) -> Iterable[Check]:
    """The columns of the contract, and at least one row."""
    yield _COLUMNS_CHECK
    minimum = {"min_value": 1}
    yield Check("row_count", "", "hold at least one row", "ExpectTableRowCountToBeBetween", minimum)


@data_check
def contract_columns(task: Task, judged: bool) -> Iterable[Check]:
    """Type, presence, length and range of each column, as the contract has them."""
    for column in COLUMNS:
        name, settings = column.name, {"type_": GX_TYPES[column.type]}
        yield Check(
            f"{name}_type", name, f"be of type {column.type}", "ExpectColumnValuesToBeOfType", settings
        )
        if not column.nullable or (judged and name == "label"):
            promise, expectation = "never be null", "ExpectColumnValuesToNotBeNull"
            yield Check(f"{name}_not_null", name, promise, expectation, {}, pc.is_null)
        yield from (_text_checks(column) if column.type == pa.string() else [_range_check(column, task)])


@data_check
def unique_row_ids(task: Task, judged: bool) -> Iterable[Check]:
    """No id twice. Here within a task; the gate compares the files of all tasks too."""
    promise = "be unique among the files of the task"
    yield Check("row_id_unique", "row_id", promise, "ExpectColumnValuesToBeUnique", {}, _repeated)


def _text_checks(column: Column) -> list[Check]:
    name, limit = column.name, column.max_chars
    assert limit is not None, f"text column {name} has no limit"
    checks = [
        Check(
            f"{name}_length",
            name,
            f"have at most {limit:,} characters",
            "ExpectColumnValueLengthsToBeBetween",
            {"max_value": limit},
            partial(_longer, max_chars=limit),
        ),
        Check(
            f"{name}_no_nul",
            name,
            "hold no NUL character",
            "ExpectColumnValuesToNotMatchRegex",
            {"regex": r"\x00"},
            _holds_nul,
        ),
    ]
    if not column.nullable:
        checks.append(
            Check(
                f"{name}_not_blank",
                name,
                "hold at least one visible character",
                "ExpectColumnValuesToMatchRegex",
                {"regex": VISIBLE},
                _blank,
            )
        )
    return checks


def _range_check(column: Column, task: Task) -> Check:
    # Both ends, always: a range open above lets infinity through.
    low, high = column.minimum, len(task.labels) - 1 if column.name == "label" else column.maximum
    assert low is not None and high is not None, f"number column {column.name} has an open range"
    return Check(
        f"{column.name}_range",
        column.name,
        f"lie in {low:g} to {high:g}",
        "ExpectColumnValuesToBeBetween",
        {"min_value": low, "max_value": high},
        partial(_outside, low=low, high=high),
    )


def _longer(values: pa.ChunkedArray, max_chars: int) -> pa.ChunkedArray:
    if (pc.max(pc.binary_length(values)).as_py() or 0) <= max_chars:  # no text has more characters than bytes
        return _nowhere(values)
    return pc.greater(pc.utf8_length(values), max_chars)


def _nowhere(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(np.zeros(len(values), dtype=bool))])


def _blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    # nearly every text begins with a letter or digit; the regular expression is only for the others
    unlike_N = np.flatnonzero(
        pc.invert(pc.is_in(pc.utf8_slice_codeunits(values, 0, 1), value_set=PLAIN_STARTS))
        .fill_null(False)
        .to_numpy()
    )
    blank_N = np.zeros(len(values), dtype=bool)
    if len(unlike_N):
        blank_N[unlike_N] = (
            pc.invert(pc.match_substring_regex(values.take(unlike_N), VISIBLE)).fill_null(False).to_numpy()
        )
    return pa.chunked_array([pa.array(blank_N)])


def _holds_nul(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return (
        pc.match_substring(values, NUL)
        if any(holds_nul(chunk) for chunk in values.chunks)
        else _nowhere(values)
    )


def _outside(values: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    # Not "less or greater": NaN is neither, and must fail.
    return pc.invert(pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)))


def _repeated(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(values, value_set=repeated_values(values))


def repeated_values(values: pa.ChunkedArray) -> pa.Array:
    """The distinct values that occur more than once; null is no value."""
    counts = pc.value_counts(values.drop_null())
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def failing_rows(check: Check, table: pa.Table) -> np.ndarray:
    """Row numbers, rising, at which `table` breaks `check`. Null breaks nothing but a not-null check."""
    if check.failing is None:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(check.failing(table[check.column]).fill_null(False).to_numpy())


def build_suite(task: Task, judged: bool = True) -> gx.ExpectationSuite:
    """The Great Expectations suite of `task`, for frames of `build_frame`; each expectation's meta holds the
    name of its check.
    """
    return build_check_suite(task.name, build_checks(task, judged))


def build_schema_suite(name: str, found: Sequence[str]) -> gx.ExpectationSuite:
    """The suite for a frame of `build_schema_frame` with the columns `found`: what the contract says they
    should have been.
    """
    types = [
        Check(
            f"{c.name}_type",
            c.name,
            f"be of type {c.type}",
            "ExpectColumnValuesToBeInSet",
            {"value_set": [str(c.type)]},
        )
        for c in COLUMNS
        if found.count(c.name) == 1
    ]
    return build_check_suite(name, (_COLUMNS_CHECK, *types))


def build_check_suite(name: str, checks: Sequence[Check]) -> gx.ExpectationSuite:
    """A suite of checks under a name."""
    import great_expectations as gx

    expectations = []
    for check in checks:
        where = {"column": check.column} if check.column else {}
        described = f"{check.column or 'the table'} must {check.promise}"
        expectation = getattr(gx.expectations, check.expectation)
        expectations.append(
            expectation(**where, **check.settings, description=described, meta={"check": check.name})
        )
    return gx.ExpectationSuite(name=name, expectations=expectations)


def build_frame(table: pa.Table) -> pd.DataFrame:
    """Contract rows as pandas sees them with nothing lost: in Arrow types NaN stays a value, where numpy
    types would make it a null, which every range check skips.
    """
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)


def build_schema_frame(schema: pa.Schema) -> pd.DataFrame:
    """A file's schema as one row: under each column's name, its Arrow type. No row is read from a file that
    breaks the contract.
    """
    import pandas as pd

    return pd.DataFrame([[str(field.type) for field in schema]], columns=list(schema.names))
