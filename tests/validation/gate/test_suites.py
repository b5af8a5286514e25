"""Suites that tasks share, and small ones of what differs."""

from pipeline.config.gates import GateConfig
from pipeline.schema import ROW_SCHEMA
from tests.support.gate_cases import LENIENT, STRICT
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
    from pipeline.data.row_files import find_row_files
    from validation.gate.file_checks import check_file

    run = GateRun(root, tasks, tmp_path / "out")
    verdicts = [check_file(job) for job in run.file_jobs(find_row_files(root, tasks).by_task)]
    return [(task, [v for v in verdicts if v.task == task.name]) for task in tasks]


def scaled(task, name, num_labels):
    """Return a task with a scale of its own length."""
    labels = tuple(f"label{i}" for i in range(num_labels))
    return task.model_copy(update={"name": name, "labels": labels, "relevant_from": 1})


def test_tasks_share_a_suite_and_label_scales_small_ones(tmp_path, task, build_table, write_rows):
    tasks = [scaled(task, f"t{i:02}", 2 + i % 8) for i in range(40)]
    root = write_rows({t.name: [build_table(t.name, label=[0, 1] * 3)] for t in tasks})
    docs = RecordingDocs()
    assert run_suites(docs, checked_files(tmp_path, tasks, root), True, GateConfig()) == []
    [(name, title, frame), *scales] = docs.runs
    assert (name, title, len(frame)) == ("t00+39", ", ".join(t.name for t in tasks), 240)
    assert [(name, title) for name, title, _ in scales] == [
        (f"t{i:02}+4+columns", f"label of {', '.join(t.name for t in tasks[i::8])}") for i in range(8)
    ]
    assert all(list(frame) == ["row_id", "label"] and len(frame) == 30 for _, _, frame in scales)


def test_tasks_of_one_scale_have_one_suite(tmp_path, task, build_table, write_rows):
    tasks = [scaled(task, f"t{i}", 3) for i in range(3)]
    root = write_rows({t.name: [build_table(t.name)] for t in tasks})
    docs = RecordingDocs()
    assert run_suites(docs, checked_files(tmp_path, tasks, root), True, GateConfig()) == []
    [(name, _, frame)] = docs.runs
    assert (name, list(frame)) == ("t0+2", ROW_SCHEMA.names)


def test_pages_show_the_label_range_of_each_task(great_expectations, tmp_path, task, build_table, write_rows):
    tasks = [scaled(task, "two", 2), scaled(task, "three", 3), scaled(task, "also-two", 2)]
    good, bad = [0, 1] * 3, [0, 1, 0, 1, 0, 2]
    labels = {"two": good, "three": bad, "also-two": bad}
    root = write_rows({name: [build_table(name, label=values)] for name, values in labels.items()})
    report = validate(GateRun(root, tasks, tmp_path / "out", config=LENIENT))
    assert report.passed and [record.quarantined for record in report.tasks.values()] == [0, 0, 1]
    index = report.data_docs.read_text()
    titles = ("two, three, also-two", "label of two, also-two", "label of three")
    assert [title for title in titles if title not in index] == []
    shown = {
        name: (report.data_docs.parent / "expectations" / f"{name}+columns.html").read_text()
        for name in ("two+1", "three")
    }
    assert "label must lie in 0 to 1" in shown["two+1"] and "label must lie in 0 to 2" in shown["three"]


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
