"""Suites that tasks with equal rules share."""

from pipeline.config.gates import GateConfig
from tests.support.gate_cases import STRICT
from validation.gate import suites
from validation.gate.file_checks import FileVerdict
from validation.gate.runner import GateRun, validate
from validation.gate.suites import group_tasks, run_suites


class RecordingDocs:
    """Stand-in for Data Docs that records suites and frames, and passes every check."""

    def __init__(self):
        self.runs = []

    def run_suite(self, suite, frame, title):
        """Record a run."""
        self.runs.append((suite.name, title, frame))
        return dict.fromkeys([expectation.meta["check"] for expectation in suite.expectations], True)


def checked_files(tmp_path, tasks, root):
    """Return the verdicts on the files of `root` by task."""
    from pipeline.data.reader import find_partitions
    from validation.gate.file_checks import check_file

    run = GateRun(root, tasks, tmp_path / "out")
    verdicts = [check_file(job) for job in run.file_jobs(find_partitions(root, tasks))]
    return [(task, [v for v in verdicts if v.task == task.name]) for task in tasks]


def test_tasks_with_equal_rules_share_a_suite(great_expectations, tmp_path, task, build_table, write_rows):
    tasks = [task, *(task.model_copy(update={"name": f"t{i}"}) for i in range(3))]
    two_labels = task.model_copy(update={"name": "two", "labels": task.labels[:2], "relevant_from": 1})
    rows = {t.name: [build_table(t.name)] for t in tasks}
    rows["two"] = [build_table("two", label=[0, 1, 0, 1, 0, 1])]
    files = checked_files(tmp_path, [*tasks, two_labels], write_rows(rows))
    docs = RecordingDocs()
    assert run_suites(docs, files, True, GateConfig()) == []
    assert [(name, title, len(frame)) for name, title, frame in docs.runs] == [
        ("query-ad+3", "query-ad, t0, t1, t2", 24),
        ("two", "two", 6),
    ]


def test_each_task_of_a_suite_gives_equally_many_rows(tmp_path, task, build_table, write_rows, monkeypatch):
    monkeypatch.setattr(suites, "FRAME_ROWS", 6)
    monkeypatch.setattr(suites, "MIN_TASK_ROWS", 2)
    tasks = [task.model_copy(update={"name": f"t{i}"}) for i in range(3)]
    root = write_rows({t.name: [build_table(f"{t.name}a"), build_table(f"{t.name}b")] for t in tasks})
    [group] = group_tasks(checked_files(tmp_path, tasks, root), lambda task: 0)
    sampled = [row_id[:2] for row_id in suites.read_sample(group)["row_id"].to_pylist()]
    assert {name: sampled.count(name) for name in ("t0", "t1", "t2")} == {"t0": 2, "t1": 2, "t2": 2}


def test_bad_row_of_any_task_fails_the_shared_suite(
    great_expectations, tmp_path, task, build_table, write_rows
):
    other = task.model_copy(update={"name": "other"})
    root = write_rows({task.name: [build_table("a")], "other": [build_table("b", query=[" ", *"vwxyz"])]})
    report = validate(GateRun(root, [task, other], tmp_path / "out", tmp_path / "accepted", config=STRICT))
    assert not any("bug of the pipeline" in failure for failure in report.failures)
    page = report.data_docs.read_text()
    assert "query-ad, other" in page


def test_schema_suites_are_shared_by_equal_differences(tmp_path, task):
    files = [FileVerdict(str(i), task.name, "", "", refused="x", differences=["x"]) for i in range(2)]
    other = task.model_copy(update={"name": "other"})
    docs = RecordingDocs()
    run_suites(docs, [(task, files[:1]), (other, files[1:])], True, GateConfig())
    assert [(name, title) for name, title, _ in docs.runs] == [
        ("query-ad+schema-1", "schema of query-ad, other")
    ]
