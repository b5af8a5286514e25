"""The gate lets good data in, refuses the rest by file, column and row, and leaves pages that are whole and
harmless.
"""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import validation.gate.cross_file_checks
import validation.gate.file_checks
import validation.gate.runner
from models.files import file_sha256
from pipeline.config.gates import GateConfig
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RetryableError
from pipeline.schema import ROW_SCHEMA
from tests.support.places import ROOT
from validation.gate.data_docs import DataDocs
from validation.gate.file_checks import PartitionJob, judge_partition
from validation.gate.report import check_report, summary_table
from validation.gate.runner import GateRun, validate

NAN, INF = float("nan"), float("inf")
STRICT = GateConfig(max_quarantined_share=0.0, max_reason_share=0.0)
LENIENT = GateConfig(max_quarantined_share=0.9, max_reason_share=0.9)


@pytest.fixture
def judge(tmp_path, task, write_rows):
    """Validate tables of the one task; the pages must be there whatever the verdict."""

    def run(*tables, judged=True, config=STRICT):
        report = validate(
            GateRun(
                write_rows({"query-ad": list(tables)}),
                [task],
                tmp_path / "out",
                tmp_path / "accepted",
                judged,
                config,
            )
        )
        assert report.data_docs.is_file()
        assert ("<title>Data accepted" in report.data_docs.read_text()) == report.passed
        return report

    return run


def _refusal(report) -> str:
    with pytest.raises(DataRefusedError) as error:
        check_report(report)
    assert error.value.exit_code == 1
    assert str(report.data_docs) in str(error.value)
    assert "relevance validate" in str(error.value)
    return str(error.value)


def test_good_data_pass_and_the_report_says_what_was_read(
    tmp_path, task, other_task, build_table, write_rows
):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")], "keyword": [build_table("c")]})
    seen = []
    report = validate(
        GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted"),
        progress=lambda *step: seen.append(step),
    )
    check_report(report)
    assert report.passed and report.failures == () and report.warnings == ()
    assert report.rows == {"keyword": 6, "query-ad": 12}
    assert {name: dict(record.label_counts) for name, record in report.tasks.items()} == {
        "keyword": {"no": 2, "yes": 2, "very": 2},
        "query-ad": {"bad": 4, "fair": 4, "good": 4},
    }
    assert report.data_digest == data_digest(find_partitions(root, [task, other_task]))
    paths = ["task=query-ad/part-0.parquet", "task=query-ad/part-1.parquet", "task=keyword/part-0.parquet"]
    assert [(f.path, f.rows, f.sha256) for f in report.files] == [
        (path, 6, file_sha256(root / path)) for path in paths
    ]
    assert seen == [(path, i, 3) for i, path in enumerate(paths, 1)]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == json.loads(json.dumps(report.as_json()))
    assert (tmp_path / "out" / written["data_docs"]) == report.data_docs


BAD_VALUES = [  # column, values, rows to be refused, what the refusal shows
    ("weight", [NAN, 1, 1, 1, 1, 1], [0], "nan"),
    ("weight", [1, INF, 1, -INF, 1, 1], [1, 3], "inf"),
    ("query", ["a", None, "b", "c", "d", "e"], [1], "null"),
    ("query", ["a", "b", "c", "d", "e", "\u200b \t"], [5], r"'\u200b \t'"),
    ("ad_title", ["a", "b", "c", "", "e", "f"], [3], "''"),
    ("ad_description", [None, None, None, "x" * 1_048_577, None, None], [3], "(1,048,577 characters)"),
    ("ad_keyword", ["a\0b", None, None, None, None, None], [0], r"'a\x00b'"),
    ("label", [0, 1, 2, 3, -1, 0], [3, 4], "holds -1"),
    ("label", [0, 1, None, 1, 1, 0], [2], "null"),
]


def test_each_bad_value_is_refused_by_file_column_and_row(judge, build_table):
    tables = [
        build_table(f"f{i}r", **{column: values}) for i, (column, values, _, _) in enumerate(BAD_VALUES)
    ]
    failures = {
        failure.split(":")[0]: failure
        for failure in judge(build_table(), *tables).failures
        if failure.startswith("task=query-ad/")
    }
    assert len(failures) == len(BAD_VALUES)
    for i, (column, _, rows, shown) in enumerate(BAD_VALUES):
        failure = failures[f"task=query-ad/part-{i + 1}.parquet"]
        assert f": column {column} must " in failure and f"; {len(rows)} of 6 rows break this: " in failure
        assert all(f"row {row} (row_id 'f{i}r{row}') holds " in failure for row in rows)
        assert shown in failure and len(failure) < 400


def test_all_bad_rows_are_counted_and_three_are_shown(judge, build_table):
    share, failure = judge(build_table(), build_table("s", weight=[-1, -2, -3, -4, 1, 1])).failures
    assert share == "task=query-ad: 4 of 12 rows are bad, more than gate.max_quarantined_share, 0.00%"
    assert failure == (
        "task=query-ad/part-1.parquet: column weight must lie in 0 to 1000; 4 of 6 rows break this: "
        "row 0 (row_id 's0') holds -1; row 1 (row_id 's1') holds -2; row 2 (row_id 's2') holds -3; ..."
    )


def test_row_id_used_twice_is_kept_once_within_a_file_across_files_and_across_tasks(
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
    aside = {
        path.relative_to(tmp_path / "out" / "quarantine").as_posix(): pq.read_table(path)
        .select(["row", "reasons"])
        .to_pylist()
        for path in (tmp_path / "out" / "quarantine").rglob("*.parquet")
    }
    assert aside == {
        "task=query-ad/part-0.parquet": [{"row": 4, "reasons": ["row_id_repeated"]}],
        "task=query-ad/part-1.parquet": [{"row": 0, "reasons": ["row_id_repeated"]}],
        "task=keyword/part-0.parquet": [{"row": 1, "reasons": ["row_id_repeated"]}],
    }
    assert report.passed and [record.reasons for record in report.tasks.values()] == [
        {"row_id_repeated": 2},
        {"row_id_repeated": 1},
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["market"]), "column market is missing"),
        (lambda t: t.append_column("score", t["weight"]), "column score is not in the contract"),
        (
            lambda t: t.rename_columns(["id", *t.column_names[1:]]),
            "column row_id is missing; column id is not in the contract",
        ),
        (lambda t: t.select(t.column_names[::-1]), "columns are in the order"),
        (lambda t: t.append_column("label", t["label"]), "columns are in the order"),
        (
            lambda t: t.cast(ROW_SCHEMA.set(7, pa.field("label", pa.int64()))),
            "column label is int64, the contract says int32",
        ),
        (
            lambda t: t.cast(ROW_SCHEMA.set(1, pa.field("query", pa.large_string()))),
            "column query is large_string",
        ),
        (
            lambda t: t.set_column(2, "ad_title", t["ad_title"].dictionary_encode()),
            "column ad_title is dictionary<",
        ),
        (
            lambda t: t.append_column("u", pa.array([b"0" * 16] * 6, pa.uuid())),
            "column u is not in the contract",
        ),
        (lambda t: t.set_column(1, "query", pa.array([{"a": [1]}] * 6)), "column query is struct<a: list<"),
    ],
    ids=[
        "missing",
        "extra",
        "renamed",
        "reordered",
        "twice",
        "int64",
        "large",
        "dictionary",
        "extension",
        "nested",
    ],
)
def test_file_that_breaks_the_contract_is_refused_with_its_differences(judge, build_table, change, said):
    report = judge(change(build_table()))
    failure = report.failures[0]
    assert failure.startswith("task=query-ad/part-0.parquet: ") and said in failure
    assert said in _refusal(report)
    assert report.files[0].rows == 6 and report.files[0].accepted == 0


def test_rows_of_other_files_are_judged_although_one_file_breaks_the_contract(judge, build_table):
    wrong = build_table("w").drop_columns(["weight"])
    report = judge(wrong, build_table(query=[None] * 6), wrong)
    schema, again, empty, share, null = report.failures
    assert schema == "task=query-ad/part-0.parquet: column weight is missing; no row was read"
    assert again == "task=query-ad/part-2.parquet: column weight is missing; no row was read"
    assert "all were set aside" in empty and "6 of 6 rows are bad" in share
    assert null.startswith("task=query-ad/part-1.parquet: column query must never be null; 6 of 6 rows")


def test_table_without_rows_is_refused_unless_another_file_of_the_task_has_some(judge, build_table):
    empty = ROW_SCHEMA.empty_table()
    assert "task=query-ad: the table must hold at least one good row; its files hold 0 rows" in _refusal(
        judge(empty)
    )
    assert judge(empty, build_table(), empty).passed


def test_folder_without_parquet_or_with_an_unknown_task_is_no_data(tmp_path, task, build_table, write_rows):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task"):
        validate(GateRun(tmp_path / "empty", [task], tmp_path / "out"))
    with pytest.raises(ConfigError, match="configured: query-ad"):
        validate(GateRun(write_rows({"other": [build_table()]}), [task], tmp_path / "out"))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"Trail runner")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"row_id,query\n1,shoes\n"),
        lambda path: path.write_bytes(b"PAR2" + path.read_bytes()[4:-4] + b"PAR2"),
        flip_a_bit,
    ],
    ids=["truncated", "zero bytes", "csv", "wrong magic", "bit flip"],
)
def test_damaged_file_is_named_with_its_cause_and_other_files_are_judged(
    tmp_path, task, build_table, write_rows, damage
):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")]})
    pq.write_table(
        build_table("b"),
        root / "task=query-ad" / "part-1.parquet",
        compression="none",
        write_page_checksum=True,
    )
    damage(root / "task=query-ad" / "part-1.parquet")
    report = validate(GateRun(root, [task], tmp_path / "out", tmp_path / "accepted"))
    assert report.damaged == ("task=query-ad/part-1.parquet",)
    assert [(f.rows, f.accepted) for f in report.files][0] == (6, 6)
    with pytest.raises(
        DamagedInputError, match=r"task=query-ad/part-1\.parquet: .*(not whole parquet|damaged)"
    ) as error:
        check_report(report)
    assert error.value.exit_code == 4
    assert not (tmp_path / "accepted").exists()


def test_folder_in_the_place_of_a_file_is_refused(tmp_path, task, build_table, write_rows):
    root = write_rows({"query-ad": [build_table("a")]})
    (root / "task=query-ad" / "part-1.parquet").mkdir()
    with pytest.raises(DamagedInputError, match=r"task=query-ad/part-1\.parquet is not a file"):
        validate(GateRun(root, [task], tmp_path / "out"))


def test_rows_that_are_not_utf8_are_set_aside_by_number_and_row_id(tmp_path, task, build_table, write_rows):
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
    aside = pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet")
    assert (
        aside["reasons"].to_pylist() == [["not_utf8"]] * 2
        and aside["query"].to_pylist()[0] == "red \ufffd shoes"
    )
    accepted = pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)
    accepted.validate(full=True)
    assert accepted["row_id"].to_pylist() == ["r0", "r2", "r3", "r5"]


def test_unlabelled_rows_pass_only_as_unjudged_data(judge, build_table):
    table = build_table(label=[None] * 6)
    report = judge(table, judged=False)
    assert report.passed and report.tasks["query-ad"].label_counts == {"bad": 0, "fair": 0, "good": 0}
    assert "column label must never be null" in _refusal(judge(table))


# a full-width R
PAIRS = {
    "query": ["Red  Shoes", "red shoes", "\uff32ED shoes", "red shoes", "red shoes", "blue"],
    "ad_title": ["Shoe", "shoe", "SHOE ", "Boot", "boot", "Hat"],
    "ad_description": ["d"] * 5 + [None],
    "ad_keyword": [None, "", None, None, None, None],
    "landing_page": [None] * 6,
}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("keep", ["r0", "r1", "r3", "r5"]),
        ("majority", ["r1", "r3", "r5"]),
        ("drop", ["r3", "r5"]),
    ],
)
def test_pair_judged_twice_is_kept_once_for_equal_labels_and_as_the_policy_says_for_unlike_ones(
    tmp_path, judge, build_table, policy, kept
):
    report = judge(
        build_table(**PAIRS, label=[1, 2, 2, 0, 0, 0]),
        config=LENIENT.model_copy(update={"label_conflicts": policy}),
    )
    assert report.passed and report.tasks["query-ad"].conflicting_pairs == 1
    assert report.warnings[-1] == (
        "task=query-ad: 1 query-ad pairs carry more than one label, in 3 rows; gate.label_conflicts is "
        f"{policy}"
    )
    assert (
        pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)[
            "row_id"
        ].to_pylist()
        == kept
    )


def test_majority_without_one_keeps_none(tmp_path, judge, build_table):
    judge(
        build_table(**PAIRS, label=[1, 2, 0, 0, 0, 0]),
        config=LENIENT.model_copy(update={"label_conflicts": "majority"}),
    )
    assert pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)[
        "row_id"
    ].to_pylist() == ["r3", "r5"]


def test_pairs_of_unlike_tasks_are_unlike_pairs(tmp_path, task, other_task, build_table, write_rows):
    root = write_rows(
        {
            "query-ad": [build_table("a")],
            "keyword": [build_table("b", query=build_table("a")["query"].to_pylist())],
        }
    )
    report = validate(GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted"))
    assert all(record.quarantined == 0 for record in report.tasks.values())


def test_repeated_pair_refuses_nothing(judge, build_table):
    report = judge(build_table("a"), build_table("b", query=build_table("a")["query"].to_pylist()))
    assert report.passed and report.tasks["query-ad"].reasons == {"pair_repeated": 6}


def test_label_off_the_scale_does_not_disturb_the_search_for_conflicts(judge, build_table):
    report = judge(
        build_table(
            query=["a"] * 6,
            ad_title=["b"] * 6,
            ad_description=["c"] * 6,
            ad_keyword=["d"] * 6,
            landing_page=["e"] * 6,
            label=[15, 2**31 - 1, -1, 0, 0, 0],
        ),
        config=LENIENT,
    )
    assert report.passed and report.tasks["query-ad"].conflicting_pairs == 0
    assert dict(report.tasks["query-ad"].reasons) == {"label_range": 3, "pair_repeated": 2}


def test_bad_rows_within_the_limits_are_set_aside_and_the_good_ones_go_on(tmp_path, judge, build_table):
    table = build_table(query=["a", None, "c", " ", "e", "f"], weight=[1, 1, 1, -1, 1, 1])
    report = judge(table, config=LENIENT)
    record = report.tasks["query-ad"]
    assert (record.read, record.accepted, record.quarantined) == (6, 4, 2)
    aside = pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet")
    assert aside["row"].to_pylist() == [1, 3] and aside["reasons"].to_pylist() == [
        ["query_not_null"],
        ["query_not_blank", "weight_range"],
    ]
    assert aside.select(ROW_SCHEMA.names).to_pylist() == table.take([1, 3]).to_pylist()
    accepted = pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)
    assert accepted.to_pylist() == table.take([0, 2, 4, 5]).to_pylist() and accepted.schema.equals(ROW_SCHEMA)
    assert "query-ad  6     4         2" in summary_table(report)


@pytest.mark.parametrize(
    ("config", "why"),
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
def test_more_bad_rows_than_a_limit_refuse_the_data_and_accept_nothing(
    tmp_path, judge, build_table, config, why
):
    judge(build_table(), config=config)
    assert (tmp_path / "accepted").is_dir()
    report = judge(build_table(query=["a", None, None, "d", "e", "f"]), config=config)
    assert why in _refusal(report)
    assert not (tmp_path / "accepted").exists()
    assert pq.read_table(tmp_path / "out" / "quarantine" / "task=query-ad" / "part-0.parquet").num_rows == 2


def test_accepted_and_quarantined_are_what_was_read_whatever_is_planted(
    tmp_path, task, build_table, write_rows
):
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


def test_file_without_a_bad_row_is_accepted_byte_for_byte(tmp_path, judge, build_table):
    report = judge(build_table())
    assert file_sha256(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet") == report.files[0].sha256


def test_only_new_and_changed_files_are_read_again(tmp_path, task, build_table, write_rows, monkeypatch):
    read = []
    whole = validation.gate.file_checks.read_and_judge
    monkeypatch.setattr(
        validation.gate.file_checks,
        "read_and_judge",
        lambda job, *rest: read.append(job.relative) or whole(job, *rest),
    )
    for tables, expected in (
        ([build_table("a"), build_table("b")], ["part-0", "part-1"]),
        ([build_table("a"), build_table("b")], []),
        ([build_table("a"), build_table("b"), build_table("c")], ["part-2"]),
        ([build_table("a"), build_table("x"), build_table("c")], ["part-1"]),
        ([build_table("c"), build_table("a"), build_table("x")], []),
    ):
        read.clear()
        report = validate(
            GateRun(write_rows({"query-ad": tables}), [task], tmp_path / "out", tmp_path / "accepted")
        )
        assert sorted(path.split("/")[1].removesuffix(".parquet") for path in read) == expected
        assert report.passed and len(
            [path for path in (tmp_path / "out" / "partitions").iterdir() if path.is_dir()]
        ) == len(tables)
    changed = task.model_copy(update={"labels": ("a", "b", "c", "d")})
    read.clear()
    validate(GateRun(tmp_path / "data", [changed], tmp_path / "out", tmp_path / "accepted"))
    assert len(read) == 3, "other rules, other verdicts"


def test_equal_files_judged_at_the_same_time_are_read_once(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    read, whole = [], validation.gate.file_checks.read_and_judge

    def slowly(job, *rest):
        read.append(job.relative)
        threading.Event().wait(0.2)
        return whole(job, *rest)

    monkeypatch.setattr(validation.gate.file_checks, "read_and_judge", slowly)
    files = sorted(write_rows({"query-ad": [build_table()] * 2}).rglob("*.parquet"))
    jobs = [PartitionJob(path, path.name, task, True, tmp_path / "work") for path in files]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(judge_partition, jobs)
    assert (one.relative, other.relative) == ("part-0.parquet", "part-1.parquet")
    assert len(read) == 1 and one.folder == other.folder
    assert [path.name for path in (tmp_path / "work").iterdir() if path.is_dir()] == [Path(one.folder).name]


def test_file_that_changes_while_it_is_judged_is_not_accepted(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    data = write_rows({"query-ad": [build_table()]})
    path = next(data.rglob("*.parquet"))
    for module, name in (
        (validation.gate.file_checks, "read_and_judge"),
        (validation.gate.runner, "find_repeats"),
    ):
        with monkeypatch.context() as patched:
            original = getattr(module, name)

            def swapping(*arguments, original=original):
                found = original(*arguments)
                pq.write_table(build_table("other"), path)
                return found

            patched.setattr(module, name, swapping)
            with pytest.raises(
                RetryableError,
                match="part-0.parquet was changed while it was judged; run the same command again",
            ):
                validate(GateRun(data, [task], tmp_path / "out", tmp_path / "accepted", config=STRICT))
        assert not (tmp_path / "accepted").exists() and not (tmp_path / "out" / "report.json").exists()
        assert not list(tmp_path.glob(".accepted*"))
    assert validate(GateRun(data, [task], tmp_path / "out", tmp_path / "accepted", config=STRICT)).passed


def test_damage_is_looked_at_again_the_next_time_under_its_own_name(
    tmp_path, judge, build_table, monkeypatch
):
    def fails(file, path):
        raise DamagedInputError(f"{path} is damaged (read error); write it again from its source")

    with monkeypatch.context() as patched:
        patched.setattr(validation.gate.file_checks, "read_batches", fails)
        report = judge(build_table(), build_table())
        assert report.damaged == ("task=query-ad/part-0.parquet", "task=query-ad/part-1.parquet")
        assert all(f"part-{i}.parquet is damaged" in report.failures[i] for i in (0, 1))
    assert judge(build_table(), build_table("b")).passed


@pytest.mark.parametrize("name", ["keys.parquet", "verdict.json", "sample.parquet"])
def test_verdict_that_a_power_cut_left_short_is_found_anew(tmp_path, judge, build_table, name):
    before = judge(build_table(query=["a", None, "c", "d", "e", "f"]), config=LENIENT)
    (path,) = (tmp_path / "out" / "partitions").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-5])
    assert judge(build_table(query=["a", None, "c", "d", "e", "f"]), config=LENIENT) == before


def test_buckets_of_hashes_change_nothing(tmp_path, task, other_task, build_table, write_rows, monkeypatch):
    tables = [
        build_table(f"p{i}", query=["a", "b", "c", "d", "e", f"f{i % 2}"], label=[i % 3, 0, 1, 2, 0, 0])
        for i in range(4)
    ]
    tables.append(build_table("p1"))
    root = write_rows({"query-ad": tables, "keyword": tables[:2]})
    found = []
    for bucket_rows in (4_000_000, 5, 1):
        monkeypatch.setattr(validation.gate.cross_file_checks, "BUCKET_ROWS", bucket_rows)
        config = LENIENT.model_copy(update={"label_conflicts": "majority"})
        validate(GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted", config=config))
        found.append((tmp_path / "out" / "report.json").read_bytes())
    assert found[0] == found[1] == found[2]
    assert b"row_id_repeated" in found[0] and b"pair_repeated" in found[0] and b"labels_conflict" in found[0]


def _titled(build_table, num_rows, foreign, prefix="r"):
    """Good rows, the first `foreign` of them with Russian titles."""
    titles = ["Кроссовки"] * foreign + ["Trail runner 7"] * (num_rows - foreign)
    parts = [build_table(prefix=f"{prefix}{i}-", ad_title=titles[i : i + 6]) for i in range(0, num_rows, 6)]
    return pa.concat_tables(parts)


@pytest.mark.parametrize(("foreign", "passes"), [(10, False), (9, True), (0, True)])
def test_file_in_another_script_than_its_tasks_is_refused_by_that_check_alone(
    judge, build_table, foreign, passes
):
    config = GateConfig(max_quarantined_share=0, max_reason_share=0, scripts={"query-ad": ("latin",)})
    report = judge(_titled(build_table, 60, foreign), config=config)
    assert report.passed == passes
    if not passes:
        assert report.failures == (
            "task=query-ad/part-0.parquet: 10 of 60 texts of ad_title are in other scripts than "
            "latin, more than gate.max_foreign_share, 5.00%;"
            " move the file to its own task, or add the script to gate.scripts",
        )
    page = report.data_docs.read_text()
    assert f"<tr><td>query-ad+scripts</td><td>{2 if passes else 1} of 2</td>" in page
    kept, of = re.search(r"<tr><td>query-ad</td><td>(\d+) of (\d+)</td>", page).groups()
    assert kept == of


def test_scripts_are_told_file_by_file_and_only_where_a_task_names_them(judge, build_table, tmp_path):
    good, bad = _titled(build_table, 60, 0), _titled(build_table, 60, 60, prefix="s")
    # half of all rows, but all of one file's
    named = GateConfig(scripts={"query-ad": ("latin",)}, max_foreign_share=0.6)
    (failure,) = judge(good, bad, config=named).failures
    assert failure.startswith("task=query-ad/part-1.parquet: 60 of 60 texts of ad_title")
    both = GateConfig(scripts={"query-ad": ("latin", "cyrillic")})
    assert judge(good, bad, config=both).passed
    assert judge(good, bad, config=GateConfig()).passed


def test_ray_tasks_on_two_workers_give_the_same_report_byte_for_byte(tmp_path, task, build_table, write_rows):
    root = write_rows(
        {"query-ad": [build_table(f"p{i}", query=[None, "b", "c", "d", "e", f"f{i}"]) for i in range(5)]}
    )
    code = (
        "import sys, pathlib\n"
        "import ray\n"
        "from pipeline.config.gates import GateConfig\n"
        "from pipeline.config.tasks import Task\n"
        "from validation.gate.runner import GateRun, validate\n"
        "root, out, workers = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])\n"
        "if workers:\n"
        "    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)\n"
        "task = Task.model_validate_json(sys.argv[4])\n"
        "validate(GateRun(root, [task], out / 'out', out / 'accepted', "
        "config=GateConfig(max_quarantined_share=0.9, max_reason_share=0.9)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    reports, accepted = [], []
    for workers in ("0", "2"):
        out = tmp_path / workers
        command = [sys.executable, "-c", code, str(root), str(out), workers, task.model_dump_json()]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-2000:]
        reports.append((out / "out" / "report.json").read_bytes())
        accepted.append({path.name: path.read_bytes() for path in (out / "accepted").rglob("*.parquet")})
    assert reports[0] == reports[1] and accepted[0] == accepted[1] and len(accepted[0]) == 5


def test_great_expectations_and_the_masks_count_the_same_rows(task, build_table):
    """Every planted fault, counted by both on the same rows."""
    from validation.gate.expectations import build_checks, build_frame, build_suite, failing_rows

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
    result = batch.validate(build_suite(task), result_format="COMPLETE")
    counted = {
        one.expectation_config.meta["check"]: one.result.get("unexpected_count") for one in result.results
    }
    for check in build_checks(task):
        if check.failing:
            assert counted[check.name] == len(failing_rows(check, table)), check.name


def test_configured_task_without_files_is_told(tmp_path, task, other_task, build_table, write_rows):
    report = validate(
        GateRun(write_rows({"query-ad": [build_table()]}), [task, other_task], tmp_path / "out")
    )
    assert report.passed and report.warnings[0].startswith("task=keyword: the task is configured")


def test_same_data_give_the_same_report(tmp_path, judge, build_table):
    written = []
    for _ in range(2):
        judge(build_table(query=[None, " ", "a", "b", "c", "d"]), build_table("s").drop_columns(["label"]))
        written.append((tmp_path / "out" / "report.json").read_bytes())
    assert written[0] == written[1]


def test_pages_carry_ad_text_as_text_and_fetch_nothing(tmp_path, judge, build_table):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)><meta http-equiv=refresh content=0>\0"
    wrong = build_table("w").append_column("<iframe src=x>", build_table()["label"])
    report = judge(build_table(ad_title=[hostile] * 6, row_id=[f"<b>{i}" for i in range(6)]), wrong)
    pages = {path: path.read_text() for path in report.data_docs.parent.rglob("*") if path.is_file()}
    assert any("&lt;script&gt;" in page for path, page in pages.items() if path != report.data_docs)
    for path, page in pages.items():
        assert path.suffix == ".html" and page.count("Content-Security-Policy") == 1
        assert not re.search(
            r"<(script|img|iframe|link|b>|meta http-equiv=refresh)|(src|href)=.?(https?:)?//", page
        ), path
        for link in re.findall(r'href="([^"#]+)"', page):
            assert (path.parent / link).resolve() in pages, link


def test_stdout_stays_empty(capsys, judge, build_table):
    judge(build_table(), build_table())
    assert capsys.readouterr().out == ""


def test_great_expectations_and_row_masks_that_disagree_refuse_the_data(monkeypatch, judge, build_table):
    monkeypatch.setattr(validation.gate.runner, "failing_rows", lambda check, table: [])
    report = judge(build_table(weight=[NAN, 1, 1, 1, 1, 1]), config=LENIENT)
    assert not report.passed
    assert "weight_range is broken for Great Expectations and kept for the row masks" in report.failures[0]


def test_failure_while_writing_leaves_the_older_pages_whole(tmp_path, monkeypatch, judge, build_table):
    before = judge(build_table()).data_docs.read_text()

    def fail(self, failures, notes):
        self._folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataDocs, "write", fail)
    with pytest.raises(OSError, match="No space"):
        judge(build_table())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_docs",
        "partitions",
        "quarantine",
    ]
    assert (tmp_path / "out" / "data_docs" / "index.html").read_text() == before


def test_long_list_of_failures_is_cut_in_the_message_and_whole_in_the_report(judge, build_table):
    report = judge(*(build_table(f"p{i}-", query=[None] * 6) for i in range(12)))
    assert len(report.failures) == 12 + 2
    assert "and 4 more, see " in _refusal(report)
    assert pq.read_table(report.data_dir / report.files[11].path).num_rows == 6
