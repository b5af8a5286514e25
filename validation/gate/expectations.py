"""Checks of a good row, generated from the row contract and the task.

A `Check` states one requirement twice: as a Great Expectations expectation, which gives the verdict and the
Data Docs, and as a vectorized Arrow mask, which finds the rows. The gate runs both and refuses the data if
they disagree.
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
from pipeline.data.visible_text import mark_blank, visible_pattern
from pipeline.errors import ConfigError
from pipeline.schema import COLUMNS, ROW_SCHEMA, Column
from validation.text.text_bytes import contains_nul

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd

# Great Expectations names a pandas Arrow type by its Python type; `schema_differences` compares the widths
GX_TYPES: dict[pa.DataType, str] = {pa.string(): "str", pa.int32(): "int", pa.float32(): "float"}

NUL = "\x00"

Mask = Callable[[pa.ChunkedArray], pa.ChunkedArray]


@dataclass(frozen=True)
class Check:
    """One requirement on a column, or on the table if `column` is empty."""

    name: str  # such as query_not_null; stable, the expectation carries it as meta
    column: str
    requirement: str  # continues a sentence after "must"
    expectation: str  # class in great_expectations.expectations
    settings: Mapping[str, Any]  # its arguments without the column
    failing_mask: Mask | None = (
        None  # marks the rows that fail; None for what is checked before rows are read
    )


# (task, labels_required) -> the checks that rows of the task must pass
CheckBuilder = Callable[[Task, bool], Iterable[Check]]


def data_check(builder: CheckBuilder) -> CheckBuilder:
    """Register a builder of checks that all rows must pass.

    Raises:
        ValueError: Another builder has the function's name.
    """
    return DATA_CHECKS.register(builder.__name__, builder)  # type: ignore[no-any-return]


def build_checks(task: Task, labels_required: bool = True) -> tuple[Check, ...]:
    """Build every check that rows of `task` must pass, installed extensions included.

    Raises:
        ConfigError: A check of an extension cannot find the rows that fail it.
    """
    load_installed_extensions()
    checks = []
    for builder in DATA_CHECKS.values():
        for check in builder(task, labels_required):
            if builder.__module__ != __name__:
                _require_row_mask(check)
            checks.append(check)
    return tuple(checks)


def _require_row_mask(check: Check) -> None:
    # what a table must fulfil as a whole would be judged by a sample, which holds bad rows first
    if check.failing_mask is None or check.column not in ROW_SCHEMA.names:
        raise ConfigError(
            f"data check has no row mask: {check.name}; give it a column of the contract and a failing_mask "
            "that marks the rows that fail"
        )


@data_check
def table_shape(task: Task, labels_required: bool) -> Iterable[Check]:
    """Require the columns of the contract, and at least one row."""
    yield Check(
        "columns",
        "",
        f"hold exactly the columns {', '.join(ROW_SCHEMA.names)}, in this order",
        "ExpectTableColumnsToMatchOrderedList",
        {"column_list": ROW_SCHEMA.names},
    )
    minimum = {"min_value": 1}
    yield Check("row_count", "", "hold at least one row", "ExpectTableRowCountToBeBetween", minimum)


@data_check
def contract_columns(task: Task, labels_required: bool) -> Iterable[Check]:
    """Require the types, presence, lengths and ranges of the contract."""
    for column in COLUMNS:
        name, settings = column.name, {"type_": GX_TYPES[column.type]}
        yield Check(
            f"{name}_type", name, f"be of type {column.type}", "ExpectColumnValuesToBeOfType", settings
        )
        if not column.nullable or (labels_required and name == "label"):
            expectation = "ExpectColumnValuesToNotBeNull"
            yield Check(f"{name}_not_null", name, "never be null", expectation, {}, pc.is_null)
        if column.type == pa.string():
            yield from _text_checks(column)
        else:
            yield _range_check(column, task)


@data_check
def unique_row_ids(task: Task, labels_required: bool) -> Iterable[Check]:
    """Require unique row_ids within a task; the gate compares the files of all tasks too."""
    requirement = "be unique among all rows"
    yield Check("row_id_unique", "row_id", requirement, "ExpectColumnValuesToBeUnique", {}, _repeated)


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
            _contains_nul,
        ),
    ]
    if not column.nullable:
        checks.append(
            Check(
                f"{name}_not_blank",
                name,
                "hold at least one visible character",
                "ExpectColumnValuesToMatchRegex",
                {"regex": visible_pattern()},
                _blank,
            )
        )
    return checks


def _range_check(column: Column, task: Task) -> Check:
    # both ends are needed: an open range accepts infinity
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
    # no text has more characters than bytes, and bytes are cheaper to count
    if (pc.max(pc.binary_length(values)).as_py() or 0) <= max_chars:
        return _no_rows(values)
    return pc.greater(pc.utf8_length(values), max_chars)


def _no_rows(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(np.zeros(len(values), dtype=bool))])


def _blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(mark_blank(values))])


def _contains_nul(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if any(contains_nul(chunk) for chunk in values.chunks):
        return pc.match_substring(values, NUL)
    return _no_rows(values)


def _outside(values: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    # not "less or greater": NaN is neither, and must fail
    return pc.invert(pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)))


def _repeated(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(values, value_set=repeated_values(values))


def repeated_values(values: pa.ChunkedArray) -> pa.Array:
    """Return the distinct values that occur more than once; null is not a value."""
    counts = pc.value_counts(values.drop_null())
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def failing_rows(check: Check, table: pa.Table) -> np.ndarray:
    """Return the row numbers at which `table` fails `check`, in ascending order.

    Null fails only a not-null check.
    """
    if check.failing_mask is None:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(check.failing_mask(table[check.column]).fill_null(False).to_numpy())


def check_key(check: Check) -> str:
    """Return a text that is equal for checks with the same requirement."""
    return repr(
        (check.name, check.column, check.requirement, check.expectation, sorted(check.settings.items()))
    )


def build_check_suite(name: str, checks: Sequence[Check]) -> gx.ExpectationSuite:
    """Build the Great Expectations suite of `checks`, for frames of `build_frame`.

    The meta of each expectation holds the name of its check.
    """
    import great_expectations as gx

    expectations = []
    for check in checks:
        arguments = {**check.settings, "meta": {"check": check.name}}
        arguments["description"] = f"{check.column or 'the table'} must {check.requirement}"
        if check.column:
            arguments["column"] = check.column
        expectations.append(getattr(gx.expectations, check.expectation)(**arguments))
    return gx.ExpectationSuite(name=name, expectations=expectations)


def build_frame(table: pa.Table) -> pd.DataFrame:
    """Convert contract rows to pandas.

    Arrow types keep NaN a value; numpy types would make it null, which every range check skips.
    """
    import pandas as pd

    return table.to_pandas(types_mapper=pd.ArrowDtype)
