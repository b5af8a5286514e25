"""Each check catches what it is for, in Great Expectations and in the row masks alike."""

import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.schema import COLUMNS, ROW_SCHEMA
from validation.gate.expectations import (
    VISIBLE,
    build_checks,
    build_frame,
    build_schema_frame,
    build_schema_suite,
    build_suite,
    failing_rows,
)


def _planted(column, *values):
    """A change that puts `values` into the first rows of `column`."""
    return column, values


# For each check that looks at rows: plantings, each of which that check and no other must refuse, in all
# planted rows.
PLANTINGS = {
    "row_id_not_null": [_planted("row_id", None)],
    "row_id_length": [_planted("row_id", "x" * 257)],
    "row_id_no_nul": [_planted("row_id", "a\0b")],
    "row_id_not_blank": [_planted("row_id", "")],
    "row_id_unique": [_planted("row_id", "same", "same"), _planted("row_id", "same", "same", "same")],
    "query_not_null": [_planted("query", None, None)],
    "query_length": [_planted("query", "x" * 4_097)],
    "query_no_nul": [_planted("query", "shoes\0"), _planted("query", "\0shoes")],
    "query_not_blank": [_planted("query", "", " ", "\t\r\n", "\u00a0\u3000", "\u200b\ufeff", "\x1c\x85")],
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
def judge(task):
    """Great Expectations' account of a frame: the names of the checks it finds broken."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )

    def broken(frame, suite=None):
        result = batch.get_batch({"dataframe": frame}).validate(
            suite or build_suite(task), result_format="BOOLEAN_ONLY"
        )
        return {one.expectation_config.meta["check"] for one in result.results if not one.success}

    return broken


def test_good_rows_keep_every_check(judge, task, build_table):
    assert judge(build_frame(build_table())) == set()
    assert all(len(failing_rows(check, build_table())) == 0 for check in build_checks(task))


@pytest.mark.parametrize(
    ("check_name", "planting"), [(name, one) for name, all_of in PLANTINGS.items() for one in all_of]
)
def test_planted_fault_is_found_by_its_check_and_by_no_other(judge, task, build_table, check_name, planting):
    column, values = planting
    good = build_table()
    bad = build_table(**{column: [*values, *good[column].to_pylist()[len(values) :]]})
    assert judge(build_frame(bad)) == {check_name}
    found = {check.name: failing_rows(check, bad).tolist() for check in build_checks(task)}
    assert {name: rows for name, rows in found.items() if rows} == {check_name: list(range(len(values)))}


def test_column_of_another_type_is_found_in_every_column(judge, build_table):
    frame = build_frame(build_table())
    other = build_frame(
        pa.table({"number": pa.array([0] * 6, pa.float64()), "text": pa.array(["0"] * 6, pa.string())})
    )
    wrong = {c.name: other["text" if c.type == pa.float32() else "number"] for c in COLUMNS}
    assert judge(frame.assign(**wrong)) >= {f"{name}_type" for name in ROW_SCHEMA.names}


def test_column_of_another_name_or_place_is_found(judge, build_table):
    frame = build_frame(build_table())
    assert judge(frame.rename(columns={"market": "country"})) >= {"columns", "market_type", "market_not_null"}
    assert judge(frame[frame.columns[::-1]]) == {"columns"}
    assert judge(frame.assign(score=1.0)) == {"columns"}


def test_empty_table_is_found(judge, build_table):
    assert judge(build_frame(build_table().slice(0, 0))) == {"row_count"}
    assert judge(build_frame(ROW_SCHEMA.empty_table())) == {"row_count"}


def test_every_check_has_a_planted_fault(task):
    names = {check.name for check in build_checks(task)}
    by_frame = {"columns", "row_count", *(f"{name}_type" for name in ROW_SCHEMA.names)}
    assert names == by_frame | set(PLANTINGS)


def test_every_column_of_the_contract_is_bounded(task):
    checks = {check.name: check for check in build_checks(task)}
    for column in COLUMNS:
        if column.type == pa.string():
            assert checks[f"{column.name}_length"].settings == {"max_value": column.max_chars}
        else:
            assert set(checks[f"{column.name}_range"].settings) == {"min_value", "max_value"}
        assert column.nullable or f"{column.name}_not_null" in checks


def test_unjudged_rows_may_lack_a_label_but_not_have_a_wrong_one(judge, task, build_table):
    unlabelled, wrong = build_table(label=[None] * 6), build_table(label=[None, 3, 0, 1, 2, None])
    suite = build_suite(task, judged=False)
    assert judge(build_frame(unlabelled), suite) == set()
    assert judge(build_frame(wrong), build_suite(task, judged=False)) == {"label_range"}


def test_labels_are_bounded_by_the_scale_of_the_task(task, build_table):
    wider = task.model_copy(update={"labels": ("a", "b", "c", "d")})
    table = build_table(label=[3, 0, 0, 0, 0, 0])
    rows = [
        failing_rows(next(c for c in build_checks(t) if c.name == "label_range"), table).tolist()
        for t in (task, wider)
    ]
    assert rows == [[0], []]


def test_visible_means_the_same_to_both_engines():
    """Great Expectations may match with Python's re or with RE2; a verdict must not depend on which."""
    texts = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    by_re2 = pc.match_substring_regex(pa.array(texts), VISIBLE).to_numpy(zero_copy_only=False)
    by_python = np.array([re.search(VISIBLE, text) is not None for text in texts])
    assert (by_re2 == by_python).all()
    white = np.array([text.isspace() for text in texts])
    assert not by_re2[white].any()
    # Hangul fillers count as letters
    assert by_re2[[text.isalnum() for text in texts]].sum() >= sum(map(str.isalnum, texts)) - 4


def test_schema_suite_finds_each_difference_and_shows_the_arrow_type(judge):
    found = pa.schema(
        [
            ("row_id", pa.large_string()),
            ("query", pa.string()),
            ("query", pa.string()),
            ("label", pa.int64()),
            ("more", pa.list_(pa.int8())),
            ("weight", pa.float32()),
        ]
    )
    frame = build_schema_frame(found)
    assert judge(frame, build_schema_suite("x", found.names)) == {"columns", "row_id_type", "label_type"}
    assert frame.iloc[0].tolist() == [
        "large_string",
        "string",
        "string",
        "int64",
        "list<item: int8>",
        "float",
    ]
    right = build_schema_frame(ROW_SCHEMA)
    assert judge(right, build_schema_suite("y", ROW_SCHEMA.names)) == set()
