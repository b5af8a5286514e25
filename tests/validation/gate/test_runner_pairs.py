"""Query-ad pairs labeled twice."""

import pyarrow.parquet as pq
import pytest

import validation.gate.cross_file_checks
import validation.gate.file_checks
import validation.gate.runner
from tests.support.gate_cases import LENIENT
from validation.gate.runner import GateRun, validate

# the third query starts with a full-width R
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
def test_repeated_pairs_are_kept_once_and_conflicts_follow_policy(
    tmp_path, validate_tables, build_table, policy, kept
):
    report = validate_tables(
        build_table(**PAIRS, label=[1, 2, 2, 0, 0, 0]),
        config=LENIENT.model_copy(update={"label_conflicts": policy}),
    )
    assert report.passed and report.tasks["query-ad"].conflicting_pairs == 1
    assert report.warnings[-1] == (
        "task=query-ad: 1 query-ad pairs have more than one label, in 3 rows; gate.label_conflicts is "
        f"{policy}"
    )
    assert (
        pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)[
            "row_id"
        ].to_pylist()
        == kept
    )


def test_majority_policy_keeps_no_row_of_a_tie(tmp_path, validate_tables, build_table):
    validate_tables(
        build_table(**PAIRS, label=[1, 2, 0, 0, 0, 0]),
        config=LENIENT.model_copy(update={"label_conflicts": "majority"}),
    )
    assert pq.read_table(tmp_path / "accepted" / "task=query-ad" / "part-0.parquet", partitioning=None)[
        "row_id"
    ].to_pylist() == ["r3", "r5"]


def test_equal_pairs_of_different_tasks_are_not_repeats(tmp_path, task, other_task, build_table, write_rows):
    root = write_rows(
        {
            "query-ad": [build_table("a")],
            "keyword": [build_table("b", query=build_table("a")["query"].to_pylist())],
        }
    )
    report = validate(GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted"))
    assert all(record.quarantined == 0 for record in report.tasks.values())


def test_repeated_pairs_do_not_refuse_data(validate_tables, build_table):
    report = validate_tables(build_table("a"), build_table("b", query=build_table("a")["query"].to_pylist()))
    assert report.passed and report.tasks["query-ad"].reasons == {"pair_repeated": 6}


def test_label_off_the_scale_is_no_conflict(validate_tables, build_table):
    report = validate_tables(
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


def test_bucket_size_does_not_change_the_report(
    tmp_path, task, other_task, build_table, write_rows, monkeypatch
):
    tables = [
        build_table(f"p{i}", query=["a", "b", "c", "d", "e", f"f{i % 2}"], label=[i % 3, 0, 1, 2, 0, 0])
        for i in range(4)
    ]
    tables.append(build_table("p1"))
    root = write_rows({"query-ad": tables, "keyword": tables[:2]})
    reports = []
    for bucket_rows in (4_000_000, 5, 1):
        monkeypatch.setattr(validation.gate.cross_file_checks, "BUCKET_ROWS", bucket_rows)
        config = LENIENT.model_copy(update={"label_conflicts": "majority"})
        validate(GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted", config=config))
        reports.append((tmp_path / "out" / "report.json").read_bytes())
    assert reports[0] == reports[1] == reports[2]
    assert (
        b"row_id_repeated" in reports[0]
        and b"pair_repeated" in reports[0]
        and b"labels_conflict" in reports[0]
    )
