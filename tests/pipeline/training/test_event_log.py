"""Tests of the event log: JSON form, damaged lines, and the follower."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.training.event_log import (
    BestEvaluation,
    EvaluationEvent,
    EventFollower,
    StartEvent,
    StepEvent,
    TrainingEvent,
    append_event,
    parse_event,
    read_events,
)
from tests.support.training_events import make_evaluation, make_start, make_step

# recorded by trainings: keys and their order may not change
RECORDED = {
    "start": '{"starts_after": 3, "best": {"step": 2, "macro_pr_auc": 0.5, "log_loss": 0.7}, '
    '"tokens_shared": [4, 9], "seconds": {"workers": 1.5}, "at_s": 1000.5}',
    "first start": '{"starts_after": 0, "best": null, "tokens_shared": null, "seconds": {}, "at_s": 1000.5}',
    "step": '{"step": 4, "num_steps": 9, "rows": 2, "loss": 1.5, "task_losses": {"a": 1.5}, "learning_rate": '
    '0.05, "rows_per_s": 4.0, "tokens_per_s": 18.0, "tokens": 9, "tokens_computed": 12, "padding": 2, '
    '"mfu": 0.1, "at_s": 1001.5, "step_s": 0.5, "seconds": {"forward": 0.1}, "gradient_norm": 5.0, '
    '"group_gradient_norms": {"heads": 3.0}}',
    "evaluation": '{"evaluated_after": 4, "tasks": {"a": {"rows": 5, "pr_auc": 0.5}}, "macro_pr_auc": 0.5, '
    '"macro_log_loss": 0.7, "is_best": false, "seconds": 0.25, "at_s": 1002.5}',
    "evaluation without metrics": '{"evaluated_after": 4, "tasks": {}, "is_best": false, "seconds": 0.25, '
    '"at_s": 1002.5}',
}


class Recorder:
    """Listener that keeps the events."""

    def __init__(self) -> None:
        self.events: list[TrainingEvent] = []

    def start(self, event: StartEvent) -> None:
        self.events.append(event)

    def step(self, event: StepEvent) -> None:
        self.events.append(event)

    def evaluation(self, event: EvaluationEvent) -> None:
        self.events.append(event)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_event_is_read_and_written_unchanged(name: str) -> None:
    event = parse_event(RECORDED[name])
    assert event is not None
    assert json.dumps(event.to_json()) == RECORDED[name]


@pytest.mark.parametrize(
    "line", ["", "[]", "3", '"step"', "\0\0", '{"step": 2, "lo', '{"step": 2}', '{"starts_after": 1}', "{}"]
)
def test_damaged_line_is_no_event(line: str) -> None:
    assert parse_event(line) is None


def test_start_ends_the_half_line_of_a_killed_worker(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    append_event(path, make_step(1))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_event(path, make_start(1, BestEvaluation(1, 0.5, 0.7)))
    append_event(path, make_step(2))
    assert read_events(path) == [make_step(1), make_start(1, BestEvaluation(1, 0.5, 0.7)), make_step(2)]
    assert read_events(tmp_path / "none.jsonl") == []


def test_follower_delivers_every_event_once_and_in_order(tmp_path: Path) -> None:
    path, recorder = tmp_path / "live.jsonl", Recorder()
    path.write_text("")
    events = [make_start(), *map(make_step, range(1, 50)), make_evaluation(49)]
    with EventFollower(path, [recorder], poll_s=0.01), path.open("a") as file:
        for event in events:
            line = json.dumps(event.to_json()) + "\n"
            for part in (line[:5], line[5:]):
                file.write(part)
                file.flush()
    assert recorder.events == events


def test_follower_skips_damaged_lines(tmp_path: Path) -> None:
    path, recorder = tmp_path / "live.jsonl", Recorder()
    good = [json.dumps(make_step(step).to_json()) for step in (1, 2)]
    path.write_text(f'{good[0]}\n{{"step": 2, "lo\n\n[]\n\0\0\n{good[1]}\n')
    with EventFollower(path, [recorder], poll_s=0.01):
        pass
    assert recorder.events == [make_step(1), make_step(2)]


def test_failing_listener_gets_later_events_and_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, recorder, failing = tmp_path / "live.jsonl", Recorder(), FailingListener()
    path.write_text("")
    for step in (1, 2):
        append_event(path, make_step(step))
    with caplog.at_level(logging.ERROR), EventFollower(path, [failing, recorder], poll_s=0.01):
        pass
    assert failing.calls == 2 and recorder.events == [make_step(1), make_step(2)]
    assert "FailingListener failed: ZeroDivisionError" in caplog.text


class FailingListener:
    """Listener whose every step fails."""

    def __init__(self) -> None:
        self.calls = 0

    def start(self, event: Any) -> None:
        """Do nothing."""

    def step(self, event: Any) -> None:
        self.calls += 1
        raise ZeroDivisionError

    def evaluation(self, event: Any) -> None:
        """Do nothing."""
