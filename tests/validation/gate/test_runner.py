"""The gate lets good data in, refuses the rest with a report, and writes whole and harmless pages."""

import json
import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from models.files import file_sha256
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.schema import ROW_SCHEMA
from tests.support.gate_cases import refusal_of
from tests.support.places import ROOT
from validation.gate.data_docs import DataDocs
from validation.gate.report import check_report
from validation.gate.runner import GateRun, validate


def test_good_data_pass_and_the_report_says_what_was_read(
    great_expectations, tmp_path, task, other_task, build_table, write_rows
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


def test_table_without_rows_is_refused_unless_another_file_of_the_task_has_some(judge, build_table):
    empty = ROW_SCHEMA.empty_table()
    assert "task=query-ad: the table must hold at least one good row; its files hold 0 rows" in refusal_of(
        judge(empty)
    )
    assert judge(empty, build_table(), empty).passed


def test_folder_without_parquet_or_with_an_unknown_task_is_no_data(tmp_path, task, build_table, write_rows):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task"):
        validate(GateRun(tmp_path / "empty", [task], tmp_path / "out"))
    with pytest.raises(ConfigError, match="configured: query-ad"):
        validate(GateRun(write_rows({"other": [build_table()]}), [task], tmp_path / "out"))


def test_unlabelled_rows_pass_only_as_unjudged_data(judge, build_table):
    table = build_table(label=[None] * 6)
    report = judge(table, judged=False)
    assert report.passed and report.tasks["query-ad"].label_counts == {"bad": 0, "fair": 0, "good": 0}
    assert "column label must never be null" in refusal_of(judge(table))


@pytest.mark.e2e
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


def test_pages_carry_ad_text_as_text_and_fetch_nothing(great_expectations, tmp_path, judge, build_table):
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


def test_stdout_stays_empty(great_expectations, capsys, judge, build_table):
    judge(build_table(), build_table())
    assert capsys.readouterr().out == ""


def test_failure_while_writing_leaves_the_older_pages_whole(
    great_expectations, tmp_path, monkeypatch, judge, build_table
):
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
    assert "and 4 more, see " in refusal_of(report)
    assert pq.read_table(report.data_dir / report.files[11].path).num_rows == 6
