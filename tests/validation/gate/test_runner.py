"""Verdicts, reports and Data Docs of the gate."""

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.files import file_sha256
from pipeline.config.splits import SplitConfig
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError, DataRefusedError
from pipeline.schema import ROW_SCHEMA
from tests.support.gate_cases import refusal_of
from tests.support.linked_folders import link_away, refuses_link
from tests.support.places import ROOT
from validation.gate.data_docs import DataDocs
from validation.gate.report import check_report
from validation.gate.runner import GateRun, validate


class RecordingProgress:
    """Progress that records its bars and updates."""

    def __init__(self):
        self.bars, self.updates = [], []

    @contextlib.contextmanager
    def track(self, description, total, unit, initial=0):
        """Record a bar."""
        self.bars.append((description, total, unit))
        yield self

    def update(self, done, note="", total=None):
        """Record an update."""
        self.updates.append(done)


def test_good_data_pass_and_report_counts_rows_and_files(
    great_expectations, tmp_path, task, other_task, build_table, write_rows
):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")], "keyword": [build_table("c")]})
    progress = RecordingProgress()
    report = validate(
        GateRun(root, [task, other_task], tmp_path / "out", tmp_path / "accepted"),
        progress,
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
    assert progress.bars == [("validate", 3, "files")] and progress.updates == [1, 2, 3]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert (tmp_path / "out" / written["data_docs"]) == report.data_docs


def test_empty_task_is_refused(validate_tables, build_table):
    empty = ROW_SCHEMA.empty_table()
    assert "task=query-ad: the table must hold at least one good row; its files hold 0 rows" in refusal_of(
        validate_tables(empty)
    )
    assert validate_tables(empty, build_table(), empty).passed


def test_empty_folder_and_unknown_task_are_refused(tmp_path, task, build_table, write_rows):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefusedError, match="holds no task"):
        validate(GateRun(tmp_path / "empty", [task], tmp_path / "out"))
    with pytest.raises(ConfigError, match="configured: query-ad"):
        validate(GateRun(write_rows({"other": [build_table()]}), [task], tmp_path / "out"))


@pytest.mark.parametrize(("link", "below"), [("out/partitions", ""), ("out", "partitions")])
def test_linked_verdicts_are_refused_and_keep_their_content(
    tmp_path, task, build_table, write_rows, link, below
):
    kept = link_away(tmp_path / "run" / link, below)
    with refuses_link():
        validate(GateRun(write_rows({"query-ad": [build_table()]}), [task], tmp_path / "run" / "out"))
    assert kept.is_file()


def test_unlabeled_rows_pass_only_if_labels_are_not_required(validate_tables, build_table):
    table = build_table(label=[None] * 6)
    report = validate_tables(table, labels_required=False)
    assert report.passed and report.tasks["query-ad"].label_counts == {"bad": 0, "fair": 0, "good": 0}
    assert "column label must never be null" in refusal_of(validate_tables(table))


@pytest.mark.e2e
def test_two_ray_workers_write_identical_reports_and_rows(tmp_path, task, build_table, write_rows):
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


def test_configured_task_without_files_is_refused(tmp_path, task, other_task, build_table, write_rows):
    report = validate(
        GateRun(write_rows({"query-ad": [build_table()]}), [task, other_task], tmp_path / "out")
    )
    assert "task=keyword" in refusal_of(report) and "has no file of the task" in refusal_of(report)


def test_task_without_both_classes_in_each_split_is_refused(tmp_path, task, build_table, write_rows):
    folders = GateRun(write_rows({"query-ad": [build_table()]}), [task], tmp_path / "out", tmp_path / "good")
    report = validate(replace(folders, splits=SplitConfig()))
    assert "task=query-ad: accepted rows are missing in a split: train" in refusal_of(report)
    assert not (tmp_path / "good").exists()
    tables = [
        build_table(f"p{i}-", query=[f"q{i}"] * 6, ad_title=list("abcdef"), label=[i % 3] * 6)
        for i in range(100)
    ]
    write_rows({"query-ad": [pa.concat_tables(tables)]})
    assert validate(replace(folders, splits=SplitConfig())).passed


def test_equal_data_give_equal_reports(tmp_path, validate_tables, build_table):
    written = []
    for _ in range(2):
        validate_tables(
            build_table(query=[None, " ", "a", "b", "c", "d"]), build_table("s").drop_columns(["label"])
        )
        written.append((tmp_path / "out" / "report.json").read_bytes())
    assert written[0] == written[1]


def test_data_docs_escape_ad_text_and_load_nothing(
    great_expectations, tmp_path, validate_tables, build_table
):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)><meta http-equiv=refresh content=0>\0"
    hostile += "\u202e\x1b[31m"
    wrong = build_table("w").append_column("<iframe src=x>", build_table()["label"])
    report = validate_tables(build_table(ad_title=[hostile] * 6, row_id=[f"<b>{i}" for i in range(6)]), wrong)
    pages = {path: path.read_text() for path in report.data_docs.parent.rglob("*") if path.is_file()}
    assert any("&lt;script&gt;" in page for path, page in pages.items() if path != report.data_docs)
    for path, page in pages.items():
        assert path.suffix == ".html" and page.count("Content-Security-Policy") == 1
        assert "unsafe-inline" not in page and " style=" not in page and page.count("<style") == 1
        assert not re.search("[\u202e\x1b]", page)
        assert not re.search(
            r"<(script|img|iframe|link|b>|meta http-equiv=refresh)|(src|href)=.?(https?:)?//", page
        ), path
        for link in re.findall(r'href="([^"#]+)"', page):
            assert (path.parent / link).resolve() in pages, link


def test_gate_prints_nothing_to_stdout(great_expectations, capsys, validate_tables, build_table):
    validate_tables(build_table(), build_table())
    assert capsys.readouterr().out == ""


def test_failed_write_keeps_previous_data_docs(
    great_expectations, tmp_path, monkeypatch, validate_tables, build_table
):
    before = validate_tables(build_table()).data_docs.read_text()

    def fail(self, failures, notes):
        self._folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataDocs, "write", fail)
    with pytest.raises(OSError, match="No space"):
        validate_tables(build_table())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_docs",
        "partitions",
        "quarantine",
        "report.json",
    ]
    assert (tmp_path / "out" / "data_docs" / "index.html").read_text() == before


def test_error_shortens_failures_and_report_lists_all(validate_tables, build_table):
    report = validate_tables(*(build_table(f"p{i}-", query=[None] * 6) for i in range(12)))
    assert len(report.failures) == 12 + 2
    assert "4 more in " in refusal_of(report)
    assert pq.read_table(report.data_dir / report.files[11].path).num_rows == 6
