"""Quarantine of bad rows, and the limits that refuse the data."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.files import file_sha256
from pipeline.config.gates import GateConfig
from pipeline.schema import ROW_SCHEMA
from tests.support.gate_cases import BAD_VALUES, LENIENT, NAN, refusal_of
from validation.gate import suites
from validation.gate.report import summary_rows
from validation.gate.runner import GateRun, validate


def test_bad_value_is_reported_with_file_column_and_row(great_expectations, validate_tables, build_table):
    tables = [
        build_table(f"f{i}r", **{column: values}) for i, (column, values, _, _) in enumerate(BAD_VALUES)
    ]
    failures = {
        failure.split(":")[0]: failure
        for failure in validate_tables(build_table(), *tables).failures
        if failure.startswith("task=query-ad/")
    }
    assert len(failures) == len(BAD_VALUES)
    for i, (column, _, rows, shown) in enumerate(BAD_VALUES):
        failure = failures[f"task=query-ad/part-{i + 1}.parquet"]
        assert f": column {column} must " in failure and f"; {len(rows)} of 6 rows break this: " in failure
        assert all(f"row {row} (row_id 'f{i}r{row}') holds " in failure for row in rows)
        assert shown in failure and len(failure) < 400


def test_all_bad_rows_are_counted_and_three_are_shown(validate_tables, build_table):
    share, failure = validate_tables(build_table(), build_table("s", weight=[-1, -2, -3, -4, 1, 1])).failures
    assert share == "task=query-ad: 4 of 12 rows are bad, more than gate.max_quarantined_share, 0.00%"
    assert failure == (
        "task=query-ad/part-1.parquet: column weight must lie in 0 to 1000; 4 of 6 rows break this: "
        "row 0 (row_id 's0') holds -1; row 1 (row_id 's1') holds -2; row 2 (row_id 's2') holds -3; ..."
    )


def test_repeated_row_id_is_kept_once_across_files_and_tasks(
    tmp_path, task, other_task, build_table, write_rows
):
    first, second = (
        build_table("a", row_id=["a0", "a1", "a2", "a3", "a1", "a5"]),
        build_table("b", row_id=["a3", "b1", "b2", "b3", "b4", "b5"]),
    )
    third = build_table("c", row_id=["c0", "b5", "c2", "c3", "c4", "c5"])
    root = write_rows({"query-ad": [first, second], "keyword": [third]})
    report = validate(
        GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted", config=LENIENT)
    )
    quarantined = {
        path.relative_to(tmp_path / "out" / "quarantine").as_posix(): pq.read_table(path)
        .select(["row", "reasons"])
        .to_pylist()
        for path in (tmp_path / "out" / "quarantine").rglob("*.parquet")
    }
    assert quarantined == {
        "task=query-ad/part-0.parquet": [{"row": 4, "reasons": ["row_id_repeated"]}],
        "task=query-ad/part-1.parquet": [{"row": 0, "reasons": ["row_id_repeated"]}],
        "task=keyword/part-0.parquet": [{"row": 1, "reasons": ["row_id_repeated"]}],
    }
    assert report.passed and [record.reasons for record in report.tasks.values()] == [
        {"row_id_repeated": 2},
        {"row_id_repeated": 1},
    ]


def test_rows_that_are_not_utf8_are_quarantined(tmp_path, task, build_table, write_rows):
    raw = [text.encode() for text in build_table()["query"].to_pylist()]
    raw[1], raw[4] = b"red \xff shoes", "lone \ud83d".encode("utf-8", "surrogatepass")
    bad = pa.array(raw, pa.binary()).view(pa.string())
    root = write_rows({"query-ad": [build_table().set_column(1, "query", bad)]})
    report = validate(GateRun(root, [task], tmp_path / "out", tmp_path / "accepted", config=LENIENT))
    (note,) = report.warnings
    assert (
        "; 2 of 6 rows break this: row 1 (row_id 'r1') holds 'r1'; row 4 (row_id 'r4')" in note
        and "UTF-8" in note
    )
    quarantined = pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet")
    assert (
        quarantined["reasons"].to_pylist() == [["not_utf8"]] * 2
        and quarantined["query"].to_pylist()[0] == "red \ufffd shoes"
    )
    accepted = pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)
    accepted.validate(full=True)
    assert accepted["row_id"].to_pylist() == ["r0", "r2", "r3", "r5"]


def test_bad_rows_within_limits_are_quarantined_and_good_rows_accepted(
    tmp_path, validate_tables, build_table
):
    table = build_table(query=["a", None, "c", " ", "e", "f"], weight=[1, 1, 1, -1, 1, 1])
    report = validate_tables(table, config=LENIENT)
    record = report.tasks["query-ad"]
    assert (record.read, record.accepted, record.quarantined) == (6, 4, 2)
    quarantined = pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet")
    assert quarantined["row"].to_pylist() == [1, 3] and quarantined["reasons"].to_pylist() == [
        ["query_not_null"],
        ["query_not_blank", "weight_range"],
    ]
    assert quarantined.select(ROW_SCHEMA.names).to_pylist() == table.take([1, 3]).to_pylist()
    accepted = pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)
    assert accepted.to_pylist() == table.take([0, 2, 4, 5]).to_pylist() and accepted.schema.equals(ROW_SCHEMA)
    assert summary_rows(report)[1][:4] == ("query-ad", "6", "4", "2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            GateConfig(max_quarantined_share=0.3, max_reason_share=0.9),
            "2 of 6 rows are bad, more than gate.max_quarantined_share, 30.00%",
        ),
        (
            GateConfig(max_quarantined_share=0.9, max_reason_share=0.3),
            "column query must never be null; 2 of 6 rows break this",
        ),
    ],
)
def test_too_many_bad_rows_refuse_all_data(tmp_path, validate_tables, build_table, config, message):
    validate_tables(build_table(), config=config)
    assert (tmp_path / "accepted").is_dir()
    report = validate_tables(build_table(query=["a", None, None, "d", "e", "f"]), config=config)
    assert message in refusal_of(report)
    assert not (tmp_path / "accepted").exists()
    assert pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet").num_rows == 2


def test_accepted_and_quarantined_rows_add_up_to_rows_read(tmp_path, task, build_table, write_rows):
    planted = [
        build_table(f"f{i}r", **{column: values}) for i, (column, values, _, _) in enumerate(BAD_VALUES)
    ]
    repeated = build_table("f0r")
    report = validate(
        GateRun(
            write_rows({"query-ad": [build_table(), *planted, repeated]}),
            [task],
            tmp_path / "out",
            tmp_path / "accepted",
            config=LENIENT,
        )
    )
    record = report.tasks["query-ad"]
    assert report.passed and record.read == 6 * (len(BAD_VALUES) + 2)
    read = {
        name: sum(pq.read_metadata(path).num_rows for path in (tmp_path / folder).rglob("*.parquet"))
        for name, folder in (("accepted", "accepted"), ("quarantined", "out/quarantine"))
    }
    assert (record.accepted, record.quarantined) == (read["accepted"], read["quarantined"])
    assert read["accepted"] + read["quarantined"] == record.read


def test_file_without_bad_rows_is_copied_byte_for_byte(tmp_path, validate_tables, build_table):
    report = validate_tables(build_table())
    assert file_sha256(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet") == report.files[0].sha256


def test_great_expectations_and_row_masks_count_the_same_rows(task, build_table):
    from validation.gate.expectations import build_check_suite, build_checks, build_frame, failing_rows

    table = pa.concat_tables(
        [build_table(f"f{i}r", **{column: values}) for i, (column, values, _, _) in enumerate(BAD_VALUES)]
    )
    import great_expectations as gx

    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("rows")
    batch = (
        source.add_dataframe_asset("all")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": build_frame(table)})
    )
    result = batch.validate(build_check_suite(task.name, build_checks(task)), result_format="COMPLETE")
    counted = {
        one.expectation_config.meta["check"]: one.result.get("unexpected_count") for one in result.results
    }
    for check in build_checks(task):
        if check.failing_mask:
            assert counted[check.name] == len(failing_rows(check, table)), check.name


def test_disagreement_of_great_expectations_and_row_masks_refuses_data(
    great_expectations, monkeypatch, validate_tables, build_table
):
    monkeypatch.setattr(suites, "failing_rows", lambda check, table: [])
    report = validate_tables(build_table(weight=[NAN, 1, 1, 1, 1, 1]), config=LENIENT)
    assert not report.passed
    assert "check weight_range fails in Great Expectations and passes in the row masks" in report.failures[0]


def test_published_rows_are_on_disk_under_every_file_name(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    root = write_rows({"query-ad": [build_table(), build_table("x", weight=[NAN, 1, 1, 1, 1, 1])]})
    first, second = sorted((root / "task=query-ad").iterdir())
    first.rename(first.with_suffix(".PARQUET"))
    second.rename(second.with_suffix(""))
    synced, sync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), sync(file)))
    assert validate(GateRun(root, [task], tmp_path / "out", tmp_path / "accepted", config=LENIENT)).passed
    written = [*(tmp_path / "accepted").rglob("*"), *(tmp_path / "out" / "quarantine").rglob("*")]
    assert {path.name for path in written} >= {"part-0.PARQUET", "part-1"}
    assert [path for path in written if path.stat().st_ino not in synced] == []
