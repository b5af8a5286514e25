"""Checks: Great Expectations and the row masks find the same faults."""

import pyarrow as pa
import pytest

from pipeline.config.extensions import DATA_CHECKS
from pipeline.errors import ConfigError
from pipeline.schema import COLUMNS, ROW_SCHEMA
from tests.support.blank_texts import BLANK_TEXTS
from validation.gate.expectations import (
    Check,
    build_check_suite,
    build_checks,
    build_frame,
    failing_rows,
)
from validation.gate.gx_internals import disabled_progress_bars


def _planted(column, *values):
    """Return a column and the values for its first rows."""
    return column, values


# faults for each check of rows; that check and no other must fail in all planted rows
PLANTINGS = {
    "row_id_not_null": [_planted("row_id", None)],
    "row_id_length": [_planted("row_id", "x" * 257)],
    "row_id_no_nul": [_planted("row_id", "a\0b")],
    "row_id_not_blank": [_planted("row_id", "")],
    "row_id_unique": [_planted("row_id", "same", "same"), _planted("row_id", "same", "same", "same")],
    "query_not_null": [_planted("query", None, None)],
    "query_length": [_planted("query", "x" * 4_097)],
    "query_no_nul": [_planted("query", "shoes\0"), _planted("query", "\0shoes")],
    "query_not_blank": [_planted("query", *BLANK_TEXTS[first : first + 6]) for first in (0, 6, 12)],
    "ad_title_not_null": [_planted("ad_title", None)],
    "ad_title_length": [_planted("ad_title", "é" * 16_385)],
    "ad_title_no_nul": [_planted("ad_title", "a\0")],
    "ad_title_not_blank": [_planted("ad_title", "", "\u2060", "  \u202e ")],
    "ad_description_length": [_planted("ad_description", "x" * 1_048_577)],
    "ad_description_no_nul": [_planted("ad_description", "line\n\0line")],
    "ad_keyword_length": [_planted("ad_keyword", "x" * 4_097)],
    "ad_keyword_no_nul": [_planted("ad_keyword", "\0")],
    "landing_page_length": [_planted("landing_page", "x" * 1_048_577)],
    "landing_page_no_nul": [_planted("landing_page", "http://a/\0")],
    "market_not_null": [_planted("market", None)],
    "market_length": [_planted("market", "m" * 64)],
    "market_no_nul": [_planted("market", "u\0s")],
    "market_not_blank": [_planted("market", " ")],
    "label_not_null": [_planted("label", None)],
    "label_range": [_planted("label", value) for value in (-1, 3, 2**31 - 1)],
    "official_split_length": [_planted("official_split", "x" * 64)],
    "official_split_no_nul": [_planted("official_split", "tr\0ain")],
    "subset_length": [_planted("subset", "x" * 64)],
    "subset_no_nul": [_planted("subset", "\0")],
    "weight_range": [
        _planted("weight", value) for value in (float("nan"), float("inf"), float("-inf"), -0.001, 1_000.1)
    ],
}


@pytest.fixture(scope="module")
def failing_checks(task):
    """Return a function that returns the names of the checks that fail in Great Expectations."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = disabled_progress_bars()
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )

    def run(frame, suite=None):
        result = batch.get_batch({"dataframe": frame}).validate(
            suite or build_check_suite(task.name, build_checks(task)), result_format="BOOLEAN_ONLY"
        )
        return {r.expectation_config.meta["check"] for r in result.results if not r.success}

    return run


def test_good_rows_pass_every_check(failing_checks, task, build_table):
    assert failing_checks(build_frame(build_table())) == set()
    assert all(len(failing_rows(check, build_table())) == 0 for check in build_checks(task))


@pytest.mark.parametrize(
    ("check_name", "planting"), [(name, one) for name, faults in PLANTINGS.items() for one in faults]
)
def test_planted_fault_fails_exactly_its_check(failing_checks, task, build_table, check_name, planting):
    column, values = planting
    good = build_table()
    bad = build_table(**{column: [*values, *good[column].to_pylist()[len(values) :]]})
    assert failing_checks(build_frame(bad)) == {check_name}
    found = {check.name: failing_rows(check, bad).tolist() for check in build_checks(task)}
    assert {name: rows for name, rows in found.items() if rows} == {check_name: list(range(len(values)))}


def test_wrong_type_is_found_in_every_column(failing_checks, build_table):
    frame = build_frame(build_table())
    other = build_frame(
        pa.table({"number": pa.array([0] * 6, pa.float64()), "text": pa.array(["0"] * 6, pa.string())})
    )
    wrong = {c.name: other["text" if c.type == pa.float32() else "number"] for c in COLUMNS}
    assert failing_checks(frame.assign(**wrong)) >= {f"{name}_type" for name in ROW_SCHEMA.names}


def test_renamed_reordered_and_extra_columns_are_found(failing_checks, build_table):
    frame = build_frame(build_table())
    assert failing_checks(frame.rename(columns={"market": "country"})) >= {
        "columns",
        "market_type",
        "market_not_null",
    }
    assert failing_checks(frame[frame.columns[::-1]]) == {"columns"}
    assert failing_checks(frame.assign(score=1.0)) == {"columns"}


def test_empty_table_fails_row_count(failing_checks, build_table):
    assert failing_checks(build_frame(build_table().slice(0, 0))) == {"row_count"}
    assert failing_checks(build_frame(ROW_SCHEMA.empty_table())) == {"row_count"}


def test_every_check_has_a_planted_fault(task):
    names = {check.name for check in build_checks(task)}
    by_frame = {"columns", "row_count", *(f"{name}_type" for name in ROW_SCHEMA.names)}
    assert names == by_frame | set(PLANTINGS)


def test_every_contract_column_has_bounds(task):
    checks = {check.name: check for check in build_checks(task)}
    for column in COLUMNS:
        if column.type == pa.string():
            assert checks[f"{column.name}_length"].settings == {"max_value": column.max_chars}
        else:
            assert set(checks[f"{column.name}_range"].settings) == {"min_value", "max_value"}
        assert column.nullable or f"{column.name}_not_null" in checks


def test_optional_labels_may_be_null_but_not_off_scale(failing_checks, task, build_table):
    unlabeled, wrong = build_table(label=[None] * 6), build_table(label=[None, 3, 0, 1, 2, None])
    suite = build_check_suite(task.name, build_checks(task, labels_required=False))
    assert failing_checks(build_frame(unlabeled), suite) == set()
    assert failing_checks(
        build_frame(wrong), build_check_suite(task.name, build_checks(task, labels_required=False))
    ) == {"label_range"}


def test_label_range_is_the_scale_of_the_task(task, build_table):
    wider = task.model_copy(update={"labels": ("a", "b", "c", "d")})
    table = build_table(label=[3, 0, 0, 0, 0, 0])
    rows = [
        failing_rows(next(c for c in build_checks(t) if c.name == "label_range"), table).tolist()
        for t in (task, wider)
    ]
    assert rows == [[0], []]


def test_checks_of_extensions_must_mark_rows(task, monkeypatch):
    settings = {"min_value": 1}
    for column, mask in (("", None), ("query", None), ("", lambda values: values), ("other", lambda v: v)):
        check = Check("many_rows", column, "hold rows", "ExpectTableRowCountToBeBetween", settings, mask)
        monkeypatch.setitem(DATA_CHECKS._items, "shop_check", lambda *_, check=check: [check])
        with pytest.raises(ConfigError, match="data check has no row mask: many_rows; give it a column"):
            build_checks(task)
