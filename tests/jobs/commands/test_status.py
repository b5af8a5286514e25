"""`relevance status`: run folders in every state."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.command_run import CommandRun
from jobs.commands.status import folder_status, run_status, training_status
from jobs.console import Console
from jobs.score_progress import ScoringProgress
from pipeline.errors import ConfigError
from pipeline.runtime.run_record import DONE, BarState, RunRecorder
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit
from pipeline.training.event_log import BestEvaluation
from tests.support.training_events import make_evaluation, make_start, make_step


def step(number: int, at_s: float, num_steps: int = 100) -> dict[str, Any]:
    return make_step(number, num_steps=num_steps, at_s=at_s).to_json()


def evaluation(after: int, macro_pr_auc: float, is_best: bool) -> dict[str, Any]:
    return make_evaluation(after, macro_pr_auc=macro_pr_auc, is_best=is_best).to_json()


def make_run(root: Path, name: str, events: list[dict[str, Any]], *folders: str) -> Path:
    run_dir = root / name
    (run_dir / "training").mkdir(parents=True)
    (run_dir / ".lock").touch()
    (run_dir / "training" / "live.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for folder in folders:
        (run_dir / folder).mkdir(parents=True)
    return run_dir


def make_recorder(run_dir: Path, command: str, run_id: str = "20261130-033100-000-aaaaaa") -> RunRecorder:
    return RunRecorder(run_dir, run_id, command, run_dir.name, (command, "--config", "c.yaml"))


def print_status(root: Path) -> tuple[dict[str, Any], list[str]]:
    out = io.StringIO()
    result = run_status(root, CommandRun(Console(err=io.StringIO(), out=out)))
    return result, out.getvalue().splitlines()


def test_running_training_has_rate_and_time_left(tmp_path: Path) -> None:
    events = [step(number, 1000 + 2 * number) for number in range(1, 41)]
    events = [*events[:10], evaluation(10, 0.7, True), *events[10:], evaluation(40, 0.6, False)]
    run_dir = make_run(tmp_path, "one", events, "training/checkpoints/step-00000020")
    with make_recorder(run_dir, "train") as recorder:
        recorder.set_progress("train", BarState(40, 100, "steps"))
        recorder.update()
        found = folder_status(run_dir)
        _, lines = print_status(tmp_path)
    assert (found["command"], found["state"]) == ("train", "running")
    training = found["training"]
    assert (training["step"], training["steps_per_s"], training["left_s"]) == (40, 0.5, 120.0)
    assert training["best"] == {"step": 10, "macro_pr_auc": 0.7} and training["has_checkpoint"]
    assert found["next"] == f"relevance runs {recorder.log.run_id} --work-dir {tmp_path}"
    assert "40/100 steps" in lines[1] and "2.0 min" in lines[1] and "0.50 steps/s" in lines[1]


def test_finished_commands_are_done_and_not_new(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "one", [step(100, 100.0)], "trained")
    with make_recorder(run_dir, "run") as recorder:
        recorder.update(state=DONE, exit_code=0, next="relevance report --config c.yaml")
    found = folder_status(run_dir)
    assert (found["command"], found["state"], found["problem"]) == ("run", "done", None)
    assert found["training"]["left_s"] is None and found["training"]["is_finished"]


def test_died_scoring_says_where_when_and_its_log(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "daily", [])
    with make_recorder(run_dir, "score") as recorder:
        recorder.update(counts={"units": 40, "units_done": 12, "units_failed": 3, "pairs_per_s": 9.0})
        recorder.add_evidence(tmp_path / "stuck-1.txt")
    notes = run_dir / "scoring" / recorder.log.run_id
    notes.mkdir(parents=True)
    (notes / "unit-7.rows").write_text('{"rows": [3], "row_ids": ["a"]}')
    result, lines = print_status(tmp_path)
    clock = time.strftime("%H:%M UTC", time.gmtime(recorder.record.updated_s))
    expected = f"daily: score died at 12 of 40 units, 3 failed, {clock}, log {recorder.log.path}"
    assert lines[-1].startswith(expected) and "stuck-1.txt" in lines[-1]
    assert "unit-7.rows" in lines[-1], "rows in flight when it died"
    assert lines[1].split()[:5] == ["daily", "score", "died", "12/40", "units,"]
    assert result["next"] == "relevance score --config c.yaml"


def test_failed_commands_show_their_reason(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "one", [])
    with make_recorder(run_dir, "validate") as recorder:
        recorder.update(state="failed", exit_code=1, reason="too many bad rows")
    _, lines = print_status(tmp_path)
    assert "validate failed" in lines[-1] and "reason: too many bad rows" in lines[-1]


def test_the_newest_command_counts(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "one", [])
    for run_id, command in (("20260101-1", "train"), ("20260102-1", "score")):
        with make_recorder(run_dir, command, run_id) as recorder:
            recorder.update(state=DONE)
    assert folder_status(run_dir)["command"] == "score"


def test_looking_does_not_hide_a_failure(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "one", [])
    with make_recorder(run_dir, "score", "20260101-1"):
        pass
    with make_recorder(run_dir, "history", "20260102-1") as recorder:
        recorder.update(state=DONE)
    assert (folder_status(run_dir)["command"], folder_status(run_dir)["state"]) == ("score", "died")


def test_rate_is_of_the_last_start_and_best_may_be_older(tmp_path: Path) -> None:
    first = [step(number, 10.0 * number) for number in range(1, 31)]
    again = [
        make_start(20, BestEvaluation(18, 0.9, 0.3)).to_json(),
        *(step(20 + n, 1000.0 + n) for n in range(1, 6)),
    ]
    run_dir = make_run(tmp_path, "one", [*first, *again, evaluation(25, 0.8, False)])
    found = training_status(run_dir, is_training=False) or {}
    assert found["steps_per_s"] == 1.0 and found["best"] == {"step": 18, "macro_pr_auc": 0.9}


def test_the_table_has_one_line_a_run_folder(tmp_path: Path) -> None:
    make_run(tmp_path, "one", [step(7, time.time() - 120), evaluation(7, 0.71, True)], "trained")
    (tmp_path / "no run").mkdir()
    result, (heading, line) = print_status(tmp_path)
    assert heading.split()[:3] == ["run", "command", "state"]
    assert line.split() == ["one", "new", "7/100", "steps", "0.710", "after", "step", "7"]
    assert [status["run"] for status in result["runs"]] == ["one"]


def test_half_written_events_are_not_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "one", [step(1, 1)])
    with (run_dir / "training" / "live.jsonl").open("a") as file:
        file.write('{"step": 2, "num')
    assert (training_status(run_dir, False) or {})["step"] == 1
    with (run_dir / "training" / "live.jsonl").open("a") as file:
        file.write("\0\0\n" + json.dumps(step(3, 3)) + "\n")
    assert (training_status(run_dir, False) or {})["step"] == 3


def test_missing_folders_are_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        run_status(tmp_path / "none", CommandRun(Console()))


class RecordedGauges(SimpleNamespace):
    """Stands for ScoringGauges: keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(units=[])

    def record_unit(self, *facts: Any) -> None:
        self.units.append(facts)


def test_running_scoring_shows_units_rate_and_labels(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "daily", [])
    units = [
        WorkUnit(task, "p", "d", f"{task}-{number}", None, 50)
        for task, number in (("search", 1), ("search", 2), ("title", 1), ("title", 2))
    ]
    gauges: Any = RecordedGauges()
    with make_recorder(run_dir, "score") as recorder:
        run = CommandRun(Console(err=io.StringIO(), out=io.StringIO()), recorder)
        with run.track("score", 200, "pairs") as bar:
            progress = ScoringProgress(units, gauges, run, bar)
            assert recorder.record.counts["units_done"] == 0
            time.sleep(0.05)
            progress.record_unit(UnitResult("search-1", "p", 48, 2))
            progress.record_unit(UnitResult("title-2", "p", error="p: poison"))
            recorder.update()
            found = folder_status(run_dir)
            _, lines = print_status(tmp_path)
    assert gauges.units[0][:5] == ("search", 48, 2, False, 3)
    assert gauges.units[1][:5] == ("title", 0, 0, True, 2) and gauges.units[1][5] > 0
    counts = found["counts"]
    assert found["state"] == "running" and counts["labels"] == {"search": 48, "title": 0}
    names = ("units", "units_done", "units_failed", "rows", "rows_done")
    assert [counts[name] for name in names] == [4, 2, 1, 200, 100]
    assert counts["left_s"] == pytest.approx(100 / counts["pairs_per_s"])
    assert "2/4 units, 1 failed" in lines[1] and "pairs/s" in lines[1]


def test_labels_of_all_tasks_count_by_task_and_bad_rows_once(tmp_path: Path) -> None:
    gauges: Any = RecordedGauges()
    unit = WorkUnit("search", "p", "d", "search-1", None, 50, all_tasks=True)
    run = CommandRun(Console(err=io.StringIO(), out=io.StringIO()))
    with run.track("score", 50, "pairs") as bar:
        progress = ScoringProgress([unit], gauges, run, bar)
        progress.record_unit(UnitResult("search-1", "p", 96, 2, tasks=("search", "title")))
    assert [facts[:4] for facts in gauges.units] == [("search", 48, 2, False), ("title", 48, 0, False)]
    assert progress.counts()["labels"] == {"search": 48, "title": 48}
    assert progress.counts()["rows_done"] == 50


def test_run_folder_without_a_lock_is_listed(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "only-predicted", "predict") as recorder:
        recorder.update(state=DONE, exit_code=0)
    (tmp_path / "records").mkdir()  # of commands without a config
    found, _ = print_status(tmp_path)
    assert [status["run"] for status in found["runs"]] == ["only-predicted"]
