"""The gate lets good data in, refuses the rest by file, column and row, and leaves pages that are whole and harmless."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import validation.gate
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError
from pipeline.files import file_sha256
from pipeline.reader import data_digest, find_partitions
from pipeline.schema import ROW_SCHEMA
from validation.data_docs import DataDocs
from validation.gate import check_report, validate

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def judge(tmp_path, task, write_rows):
    """Validate tables of the one task; the pages must be there whatever the verdict."""

    def run(*tables, judged=True):
        report = validate(write_rows({"query-ad": list(tables)}), [task], tmp_path / "out", judged)
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


def test_good_data_pass_and_the_report_says_what_was_read(tmp_path, task, other_task, build_table, write_rows):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")], "keyword": [build_table("c")]})
    seen = []
    report = validate(root, [task, other_task], tmp_path / "out", progress=lambda *step: seen.append(step))
    check_report(report)
    assert report.passed and report.failures == () and report.warnings == ()
    assert report.rows == {"keyword": 6, "query-ad": 12}
    assert report.label_counts == {"keyword": {"no": 2, "yes": 2, "very": 2}, "query-ad": {"bad": 4, "fair": 4, "good": 4}}
    assert report.data_digest == data_digest(find_partitions(root, [task, other_task]))
    paths = ["task=keyword/part-0.parquet", "task=query-ad/part-0.parquet", "task=query-ad/part-1.parquet"]
    assert [(f.path, f.rows, f.sha256) for f in report.files] == [(path, 6, file_sha256(root / path)) for path in paths]
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
    tables = [build_table(f"f{i}r", **{column: values}) for i, (column, values, _, _) in enumerate(BAD_VALUES)]
    failures = {failure.split(":")[0]: failure for failure in judge(build_table(), *tables).failures}
    assert len(failures) == len(BAD_VALUES)
    for i, (column, _, rows, shown) in enumerate(BAD_VALUES):
        failure = failures[f"task=query-ad/part-{i + 1}.parquet"]
        assert f": column {column} must " in failure and f"; {len(rows)} of 6 rows break this: " in failure
        assert all(f"row {row} (row_id 'f{i}r{row}') holds " in failure for row in rows)
        assert shown in failure and len(failure) < 400


def test_all_bad_rows_are_counted_and_three_are_shown(judge, build_table):
    failure, = judge(build_table(), build_table("s", weight=[-1, -2, -3, -4, 1, 1])).failures
    assert failure == (
        "task=query-ad/part-1.parquet: column weight must lie in 0 to 1000; 4 of 6 rows break this: "
        "row 0 (row_id 's0') holds -1; row 1 (row_id 's1') holds -2; row 2 (row_id 's2') holds -3; ..."
    )


def test_row_id_used_twice_is_refused_across_files_and_across_tasks(tmp_path, task, other_task, build_table, write_rows):
    first, second = build_table("a"), build_table("b", row_id=["a3", "b1", "b2", "b3", "b4", "b5"])
    third = build_table("c", row_id=["c0", "b5", "c2", "c3", "c4", "c5"])
    report = validate(write_rows({"query-ad": [first, second], "keyword": [third]}), [task, other_task], tmp_path / "out")
    unique, alone = "column row_id must be unique among the files of the task", "column row_id must be used by no other task"
    assert [failure.split(";")[0] for failure in report.failures] == [
        f"task=query-ad/part-0.parquet: {unique}", f"task=query-ad/part-1.parquet: {unique}",
        f"task=keyword/part-0.parquet: {alone}", f"task=query-ad/part-1.parquet: {alone}",
    ]
    assert ["'a3'" in f for f in report.failures] == [True, True, False, False]
    assert ["'b5'" in f for f in report.failures] == [False, False, True, True]


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.drop_columns(["market"]), "column market is missing"),
    (lambda t: t.append_column("score", t["weight"]), "column score is not in the contract"),
    (lambda t: t.rename_columns(["id", *t.column_names[1:]]), "column row_id is missing; column id is not in the contract"),
    (lambda t: t.select(t.column_names[::-1]), "columns are in the order"),
    (lambda t: t.append_column("label", t["label"]), "columns are in the order"),
    (lambda t: t.cast(ROW_SCHEMA.set(7, pa.field("label", pa.int64()))), "column label is int64, the contract says int32"),
    (lambda t: t.cast(ROW_SCHEMA.set(1, pa.field("query", pa.large_string()))), "column query is large_string"),
    (lambda t: t.set_column(2, "ad_title", t["ad_title"].dictionary_encode()), "column ad_title is dictionary<"),
    (lambda t: t.append_column("u", pa.array([b"0" * 16] * 6, pa.uuid())), "column u is not in the contract"),
    (lambda t: t.set_column(1, "query", pa.array([{"a": [1]}] * 6)), "column query is struct<a: list<"),
], ids=["missing", "extra", "renamed", "reordered", "twice", "int64", "large", "dictionary", "extension", "nested"])
def test_file_that_breaks_the_contract_is_refused_with_its_differences(judge, build_table, change, said):
    report = judge(change(build_table()))
    failure, = report.failures
    assert failure.startswith("task=query-ad/part-0.parquet: ") and said in failure
    assert said in _refusal(report)
    assert report.rows == {"query-ad": 6}


def test_rows_of_other_files_are_judged_although_one_file_breaks_the_contract(judge, build_table):
    wrong = build_table("w").drop_columns(["weight"])
    report = judge(wrong, build_table(query=[None] * 6), wrong)
    schema, null = report.failures
    assert schema == "task=query-ad/part-0.parquet and 1 more files: column weight is missing; no row was read"
    assert null.startswith("task=query-ad/part-1.parquet: column query must never be null; 6 of 6 rows")


def test_table_without_rows_is_refused_unless_another_file_of_the_task_has_some(judge, build_table):
    empty = ROW_SCHEMA.empty_table()
    assert "task=query-ad: the table must hold at least one row; 1 files hold none" in _refusal(judge(empty))
    assert judge(empty, build_table(), empty).passed


def test_folder_without_parquet_or_with_an_unknown_task_is_no_data(tmp_path, task, build_table, write_rows):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task"):
        validate(tmp_path / "empty", [task], tmp_path / "out")
    with pytest.raises(ConfigError, match="configured: query-ad"):
        validate(write_rows({"other": [build_table()]}), [task], tmp_path / "out")


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-100]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"row_id,query\n1,shoes\n"),
    lambda path: (path.unlink(), path.mkdir()),
], ids=["truncated", "zero bytes", "csv", "folder"])
def test_damaged_file_is_named_and_no_verdict_is_left(tmp_path, task, build_table, write_rows, damage):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")]})
    validate(root, [task], tmp_path / "out")
    damage(root / "task=query-ad" / "part-1.parquet")
    with pytest.raises(DamagedInputError, match=r"task=query-ad/part-1\.parquet") as error:
        validate(root, [task], tmp_path / "out")
    assert error.value.exit_code == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data_docs"]  # the older pages; no report, nothing half-written


def test_text_that_is_not_utf8_is_damage(tmp_path, task, build_table, write_rows):
    bad = pa.array([b"\xff\xfe"] * 6, pa.binary()).view(pa.string())
    root = write_rows({"query-ad": [build_table().set_column(1, "query", bad)]})
    with pytest.raises(DamagedInputError, match=r"part-0\.parquet"):
        validate(root, [task], tmp_path / "out")


def test_unlabelled_rows_pass_only_as_unjudged_data(judge, build_table):
    table = build_table(label=[None] * 6)
    report = judge(table, judged=False)
    assert report.passed and report.label_counts == {"query-ad": {"bad": 0, "fair": 0, "good": 0}}
    assert "column label must never be null" in _refusal(judge(table))


def test_same_pair_with_two_labels_is_told_and_not_refused(judge, build_table):
    texts = {"query": ["Red  Shoes", "red shoes", "\uff32ED shoes", "red shoes", "red shoes", "blue"],  # a full-width R
             "ad_title": ["Shoe", "shoe", "SHOE ", "Boot", "boot", "Hat"], "ad_description": ["d"] * 5 + [None],
             "ad_keyword": [None, "", None, None, None, None], "landing_page": [None] * 6}
    report = judge(build_table(**texts, label=[1, 2, 2, 0, 0, 0]))
    assert report.passed and report.conflicting_pairs == {"query-ad": 1}
    warning, = report.warnings
    assert warning == "task=query-ad: 1 query-ad pairs carry more than one label, in 3 rows: 'r0' says fair and 'r1' says good"


def test_label_off_the_scale_does_not_disturb_the_search_for_conflicts(judge, build_table):
    report = judge(build_table(query=["a"] * 6, ad_title=["b"] * 6, label=[15, 2**31 - 1, -1, 0, 0, 0]))
    assert len(report.failures) == 1 and report.conflicting_pairs == {"query-ad": 0}


def test_configured_task_without_files_is_told(tmp_path, task, other_task, build_table, write_rows):
    report = validate(write_rows({"query-ad": [build_table()]}), [task, other_task], tmp_path / "out")
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
        assert not re.search(r"<(script|img|iframe|link|b>|meta http-equiv=refresh)|(src|href)=.?(https?:)?//", page), path
        for link in re.findall(r'href="([^"#]+)"', page):
            assert (path.parent / link).resolve() in pages, link


def test_stdout_stays_empty(capsys, judge, build_table):
    judge(build_table(), build_table())
    assert capsys.readouterr().out == ""


def test_great_expectations_and_row_masks_that_disagree_refuse_the_data(monkeypatch, judge, build_table):
    monkeypatch.setattr(validation.gate, "failing_rows", lambda check, table: [])
    failure, = judge(build_table(weight=[NAN, 1, 1, 1, 1, 1])).failures
    assert "weight_range is broken for Great Expectations and kept for the row masks" in failure


def test_failure_while_writing_leaves_the_older_pages_whole(tmp_path, monkeypatch, judge, build_table):
    before = judge(build_table()).data_docs.read_text()

    def fail(self, failures, notes):
        self._folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataDocs, "write", fail)
    with pytest.raises(OSError, match="No space"):
        judge(build_table())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data_docs"]
    assert (tmp_path / "out" / "data_docs" / "index.html").read_text() == before


def test_long_list_of_failures_is_cut_in_the_message_and_whole_in_the_report(judge, build_table):
    report = judge(*(build_table(f"p{i}-", query=[None] * 6) for i in range(12)))
    assert len(report.failures) == 12
    assert "and 2 more, see " in _refusal(report)
    assert pq.read_table(report.data_dir / report.files[11].path).num_rows == 6
