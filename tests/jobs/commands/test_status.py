"""`relevance status`: what it says of runs in every state."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from jobs import score_progress as score_live
from jobs.commands.status import run_status, training_status
from jobs.console import Console
from jobs.execution import LOCK_WAIT_S
from pipeline.errors import ConfigError
from pipeline.scoring.actor import Outcome
from pipeline.scoring.work_units import Unit
from tests.support.places import ROOT


def step(number: int, at_s: float, num_steps: int = 100) -> dict[str, Any]:
    return {"step": number, "num_steps": num_steps, "at_s": at_s}


def evaluation(after: int, macro_pr_auc: float, is_best: bool) -> dict[str, Any]:
    return {"evaluated_after": after, "macro_pr_auc": macro_pr_auc, "is_best": is_best, "tasks": {}}


def make_run(root: Path, name: str, lines: list[dict[str, Any]], *folders: str) -> Path:
    run = root / name
    (run / "training").mkdir(parents=True)
    (run / ".lock").touch()
    (run / "training" / "live.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder in folders:
        (run / folder).mkdir(parents=True)
    return run


def test_a_training_under_way_has_a_rate_and_time_left(tmp_path: Path) -> None:
    lines = [step(number, 1000 + 2 * number) for number in range(1, 41)]
    lines = [*lines[:10], evaluation(10, 0.7, True), *lines[10:], evaluation(40, 0.6, False)]
    run = make_run(tmp_path, "one", lines, "training/checkpoints/step-00000020")
    with FileLock(run / ".lock"):
        assert training_status(run)["state"] == "working"
        with FileLock(run / "training" / "active"):
            found = training_status(run)
    assert training_status(run)["state"] == "interrupted"
    assert (found["state"], found["step"], found["steps_per_s"], found["left_s"]) == (
        "training",
        40,
        0.5,
        120.0,
    )
    assert found["best"] == {"step": 10, "macro_pr_auc": 0.7}


@pytest.mark.parametrize(
    ("folders", "steps", "state"),
    [
        (["training/checkpoints/step-00000020"], 30, "interrupted"),
        (["trained", "training/checkpoints"], 100, "trained"),
        (["trained", "training/checkpoints/step-00000020"], 30, "interrupted"),
        (["training/checkpoints"], 5, "stopped"),
        ([], 0, "new"),
    ],
)
def test_a_run_nobody_works_in_has_the_state_of_what_lies_there(
    tmp_path: Path, folders: list[str], steps: int, state: str
) -> None:
    run = make_run(tmp_path, "one", [step(number, number) for number in range(1, steps + 1)], *folders)
    found = training_status(run)
    assert (found["state"], found["left_s"]) == (state, None)


def test_the_rate_is_that_of_the_last_start_and_the_best_may_be_an_earlier_command_s(tmp_path: Path) -> None:
    first = [step(number, 10.0 * number) for number in range(1, 31)]
    again = [
        {"starts_after": 20, "best": {"step": 18, "macro_pr_auc": 0.9, "log_loss": 0.3}},
        *(step(20 + n, 1000.0 + n) for n in range(1, 6)),
    ]
    found = training_status(make_run(tmp_path, "one", [*first, *again, evaluation(25, 0.8, False)]))
    assert found["steps_per_s"] == 1.0 and found["best"] == {"step": 18, "macro_pr_auc": 0.9}


def test_the_table_has_a_line_a_run_and_leaves_other_folders_out(tmp_path: Path) -> None:
    make_run(tmp_path, "one", [step(7, time.time() - 120), evaluation(7, 0.71, True)], "trained")
    (tmp_path / "no run").mkdir()
    out = io.StringIO()
    result = run_status(tmp_path, Console(err=io.StringIO(), out=out))
    heading, line = out.getvalue().splitlines()
    assert heading.split()[:3] == ["run", "state", "step"]
    assert line.split() == ["one", "trained", "7/100", "0.710", "after", "step", "7", "2.0", "min", "ago"]
    assert [run["run"] for run in result["runs"]] == ["one"]


def test_a_half_written_last_line_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", [step(1, 1)])
    with (run / "training" / "live.jsonl").open("a") as file:
        file.write('{"step": 2, "num')
    assert training_status(run)["step"] == 1
    with (run / "training" / "live.jsonl").open("a") as file:
        file.write("\0\0\n" + json.dumps(step(3, 3)) + "\n")
    assert training_status(run)["step"] == 3


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; name the work_dir"):
        run_status(tmp_path / "none", Console())


def test_looking_does_not_keep_a_command_from_starting(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", [])
    look = f"""
from pathlib import Path
from jobs.commands.status import is_locked
print(1, flush=True)
while True:
    is_locked(Path({str(run / ".lock")!r}))
"""
    looking = subprocess.Popen([sys.executable, "-c", look], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert looking.stdout is not None and looking.stdout.readline() == b"1\n"
        for _ in range(50):
            with FileLock(run / ".lock", timeout=LOCK_WAIT_S):
                pass
        assert looking.poll() is None
    finally:
        looking.kill()


def test_a_scoring_under_way_tells_units_pairs_time_left_and_labels_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        score_live, "ScoringGauges", lambda run: SimpleNamespace(unit_done=lambda *facts: told.append(facts))
    )
    run = make_run(tmp_path, "daily", [])
    units = [
        Unit(task, "p", "d", f"{task}-{number}", None, 50)
        for task, number in (("search", 1), ("search", 2), ("title", 1), ("title", 2))
    ]
    screen = io.StringIO()
    (run / "scoring").mkdir()
    with Console(err=screen).progress("score", 200, "pairs") as progress:
        live = score_live.ScoringLive(score_live.live_path(run), "daily", units, progress)
        assert (score_live.read_live(run) or {})["units_done"] == 0
        time.sleep(0.05)
        live.unit_done(Outcome("search-1", "p", 48, 2))
        live.unit_done(Outcome("title-2", "p", error="p: poison"))
    assert (
        told[0][:5] == ("search", 48, 2, False, 3)
        and told[1][:5] == ("title", 0, 0, True, 2)
        and told[1][5] > 0
    )
    assert training_status(run)["state"] == "new", "nobody works in it"
    with FileLock(run / ".lock"), FileLock(run / "scoring" / "active"):
        found = training_status(run)
        out = io.StringIO()
        run_status(tmp_path, Console(out=out))
    scoring = found["scoring"]
    assert found["state"] == "scoring" and scoring["labels"] == {"search": 48, "title": 0}
    assert [scoring[name] for name in ("units", "units_done", "units_failed", "rows", "rows_done")] == [
        4,
        2,
        1,
        200,
        100,
    ]
    assert scoring["left_s"] == pytest.approx(100 / scoring["pairs_per_s"])
    line = out.getvalue().splitlines()[1]
    assert "scoring" in line and "2/4 units, 1 failed" in line and "search 48, title 0" in line


def test_labels_of_all_tasks_are_told_task_by_task_and_bad_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        score_live, "ScoringGauges", lambda run: SimpleNamespace(unit_done=lambda *facts: told.append(facts))
    )
    unit = Unit("search", "p", "d", "search-1", None, 50, all_tasks=True)
    with Console(err=io.StringIO()).progress("score", 50, "pairs") as progress:
        live = score_live.ScoringLive(tmp_path / "live.json", "daily", [unit], progress)
        live.unit_done(Outcome("search-1", "p", 96, 2, tasks=("search", "title")))
    assert [facts[:4] for facts in told] == [("search", 48, 2, False), ("title", 48, 0, False)]
    assert live.facts()["labels"] == {"search": 48, "title": 48} and live.facts()["rows_done"] == 50
