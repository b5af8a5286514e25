"""Event log of a training: workers append to it, the driver and `relevance status` read it.

The log is a file of JSON lines, one event each. An event's fields are the keys of its line.
"""

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from models.files import name_file_in_errors
from pipeline.errors import summarize_error
from pipeline.storage.filesystem import open_to_append

logger = logging.getLogger(__name__)

POLL_S = 0.5  # between looks at the log


@dataclass(frozen=True)
class BestEvaluation:
    """Best evaluation on the valid split so far."""

    step: int
    macro_pr_auc: float
    log_loss: float  # mean over tasks; decides between equal macro PR-AUCs

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BestEvaluation":
        """Build from the JSON form."""
        return cls(**value)


@dataclass(frozen=True)
class StartEvent:
    """Start of the workers, after they restored their state."""

    starts_after: int  # steps done before
    best: BestEvaluation | None
    tokens_shared: tuple[int, ...] | None  # shared prefix length of each task; None: rows are padded
    seconds: dict[str, float]  # by phase of the start
    at_s: float  # Unix time

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StartEvent":
        """Build from the JSON form; TypeError if a key is missing or unknown."""
        best, shared = value["best"], value["tokens_shared"]
        return cls(
            **{
                **value,
                "best": None if best is None else BestEvaluation.from_json(best),
                "tokens_shared": None if shared is None else tuple(shared),
            }
        )


@dataclass(frozen=True)
class StepEvent:
    """Optimizer step; sums and speeds are over all ranks."""

    step: int  # steps done, this one included
    num_steps: int  # of the whole run
    rows: int
    loss: float
    task_losses: dict[str, float]  # of the tasks that have rows in the batch
    learning_rate: float
    rows_per_s: float
    tokens_per_s: float
    tokens: int  # of the rows, each with its whole prefix
    tokens_computed: int  # a shared prefix once per pass; padding included
    padding: int  # tokens
    mfu: float  # model FLOPs utilization, of a measured matrix product
    at_s: float  # Unix time
    step_s: float
    seconds: dict[str, float]  # of rank 0, by phase of the step
    gradient_norm: float
    group_gradient_norms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StepEvent":
        """Build from the JSON form; TypeError if a key is missing or unknown."""
        return cls(**value)


@dataclass(frozen=True)
class EvaluationEvent:
    """Evaluation of the model on the valid split."""

    evaluated_after: int  # steps
    tasks: dict[str, dict[str, float]]  # metrics by task; tasks without both classes are left out
    macro_pr_auc: float | None  # means over `tasks`; None if it is empty
    macro_log_loss: float | None
    is_best: bool
    seconds: float
    at_s: float  # Unix time

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the means that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EvaluationEvent":
        """Build from the JSON form; TypeError if a key is missing or unknown."""
        return cls(**{"macro_pr_auc": None, "macro_log_loss": None, **value})


TrainingEvent = StartEvent | StepEvent | EvaluationEvent


class TrainingListener(Protocol):
    """Receiver of a training's events, in their order."""

    def start(self, event: StartEvent) -> None:
        """Handle a start of the workers."""

    def step(self, event: StepEvent) -> None:
        """Handle a step."""

    def evaluation(self, event: EvaluationEvent) -> None:
        """Handle an evaluation."""


def notify(listener: TrainingListener, event: TrainingEvent) -> None:
    """Call the listener's method for the event."""
    match event:
        case StartEvent():
            listener.start(event)
        case StepEvent():
            listener.step(event)
        case EvaluationEvent():
            listener.evaluation(event)


def parse_event(line: str) -> TrainingEvent | None:
    """Return the event of a line; None if it is damaged, as a full disk or a power cut may leave it."""
    try:
        value = json.loads(line)
        if "starts_after" in value:
            return StartEvent.from_json(value)
        if "evaluated_after" in value:
            return EvaluationEvent.from_json(value)
        return StepEvent.from_json(value)
    except (ValueError, TypeError, KeyError):
        return None


def read_events(path: Path) -> list[TrainingEvent]:
    """Return the whole events of a log; none if there is no log."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [event for event in map(parse_event, lines) if event is not None]


def append_event(path: Path, event: TrainingEvent) -> None:
    """Append a line to the log."""
    # workers that died may have left half a line
    needs_line_break = isinstance(event, StartEvent) and _ends_in_half_a_line(path)
    with name_file_in_errors(path), os.fdopen(open_to_append(path), "a", encoding="utf-8") as file:
        file.write(("\n" if needs_line_break else "") + json.dumps(event.to_json()) + "\n")


def _ends_in_half_a_line(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


class EventFollower:
    """Thread that passes each new event of a log to listeners, until the context ends.

    An error of a listener is logged, and later events reach it all the same: training does not depend on its
    listeners.
    """

    def __init__(self, path: Path, listeners: Sequence[TrainingListener], poll_s: float = POLL_S) -> None:
        self.path, self.listeners, self.poll_s = path, listeners, poll_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "EventFollower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        with self.path.open(encoding="utf-8") as file:
            tail = ""
            while True:
                is_last_round = self._closing.is_set()
                tail += file.read()
                *lines, tail = tail.split("\n")
                for line in lines:
                    event = parse_event(line)
                    if event is not None:
                        self._notify_all(event)
                if is_last_round:
                    return
                self._closing.wait(self.poll_s)

    def _notify_all(self, event: TrainingEvent) -> None:
        for listener in self.listeners:
            try:
                notify(listener, event)
            except Exception as error:
                name = type(listener).__name__
                logger.exception(f"  {name} failed: {summarize_error(error)}; training continues")
