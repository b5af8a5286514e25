"""Rows that cannot be scored are separated with a reason; every row is valid or an error."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.row_errors import ERROR_SCHEMA, split_valid_rows
from tests.support.blank_texts import BLANK_TEXTS

GOOD = {"row_id": "a", "query": "lamp", "ad_title": "desk lamp", "market": "us"}


def table_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.table(
        {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in ROW_SCHEMA}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"row_id": None}, "row_id is null"),
        ({"row_id": ""}, "row_id is blank"),
        ({"query": None}, "query is null"),
        ({"ad_title": None}, "ad_title is null"),
        ({"query": " \t "}, "query is blank"),
        ({"ad_title": ""}, "ad_title is blank"),
        *(({"query": text}, "query is blank") for text in BLANK_TEXTS),
        ({"market": None}, "market is null"),
        ({"query": "q" * 4_097}, "query has over 4,096 characters"),
        ({"ad_title": "é" * 16_385}, "ad_title has over 16,384 characters"),
        ({"row_id": "a"}, "row_id repeats row 100 of the same file"),
    ],
)
def test_bad_row_is_reported_with_number_and_reason(change: dict[str, Any], reason: str) -> None:
    table = table_of(GOOD, {**GOOD, "row_id": "b", **change}, {**GOOD, "row_id": "c"})
    rows, errors = split_valid_rows(table, "two", 100, "f" * 64)
    assert rows.column("row_id").to_pylist() == ["a", "c"] and rows.schema.names == ROW_SCHEMA.names
    assert errors.schema == ERROR_SCHEMA
    row_id = table.column("row_id")[1].as_py()
    assert errors.to_pylist() == [
        {"row_id": row_id, "row": 101, "task": "two", "reason": reason, "bundle_sha256": "f" * 64}
    ]


VALID_CHANGES = [
    {"query": "q" * 4_096},
    {"ad_description": None},
    {"label": 99},
    {"weight": float("nan")},
    {"market": ""},
]


@pytest.mark.parametrize("change", VALID_CHANGES, ids=str)
def test_columns_unused_by_scoring_are_not_checked(change: dict[str, Any]) -> None:
    rows, errors = split_valid_rows(table_of({**GOOD, **change}), "two", 0, "f")
    assert (rows.num_rows, errors.num_rows) == (1, 0)


def test_empty_table_has_no_errors() -> None:
    rows, errors = split_valid_rows(table_of(), "two", 0, "f")
    assert (rows.num_rows, errors.num_rows) == (0, 0)


def test_id_spelled_none_is_not_missing() -> None:
    _, errors = split_valid_rows(
        table_of({**GOOD, "row_id": None}, {**GOOD, "row_id": "None"}), "two", 0, "f"
    )
    assert errors.column("reason").to_pylist() == ["row_id is null"]


def test_first_of_rows_with_equal_ids_is_kept() -> None:
    rows, errors = split_valid_rows(table_of(GOOD, GOOD, {**GOOD, "query": ""}), "two", 0, "f")
    assert rows.num_rows == 1 and errors.column("reason").to_pylist() == [
        "row_id repeats row 0 of the same file",
        "query is blank",
    ]
