"""Whether a model is scored with in int8: measured once for a model and a place of labels, kept beside the labels, and followed from then on. A
choice that came anew each time would fall either way where it is close, and label rows a second time under other partition ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.quantize import Precision
from pipeline.commit import Root, parse_json
from pipeline.files import canonical_json, json_sha256
from pipeline.store import open_store

MAX_CHANGED = 0.02  # of a task's labels, and of its decisions; a mean of probabilities does not tell that those near a threshold fell over it
MIN_SPEED = 1.05  # times the native pace, as timings on a machine in use differ by some hundredths by themselves


@dataclass(frozen=True)
class PrecisionChoice:
    """What a run scores in."""

    precision: Precision = "native"
    canary_moves: float = 0.0  # that int8 moved probabilities of the version's canary rows by where it was measured
    record: Mapping[str, Any] | None = None  # the measurement and its verdict; None: nobody asked for int8

    @property
    def ways(self) -> tuple[str, ...]:
        """What partition ids tell of it."""
        return () if self.precision == "native" else (self.precision,)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"precision": self.precision, **({} if self.record is None else {"int8": dict(self.record)})}


NATIVE = PrecisionChoice()


def record_key(bundle_sha256: str, tolerance: float) -> str:
    """Where the measurement of a bundle lies among the labels. Another tolerance is another question."""
    return f"int8/{bundle_sha256[:16]}-{json_sha256({'tolerance': tolerance})[:8]}.json"


def read_choice(root: Root, bundle_sha256: str, tolerance: float) -> PrecisionChoice | None:
    """What was chosen; None: nothing yet. DamagedInputError: the record is not whole."""
    store, key = open_store(root), record_key(bundle_sha256, tolerance)
    return choice_of(parse_json(store, key)) if store.exists(key) else None


def keep_choice(root: Root, bundle_sha256: str, tolerance: float, measured: Mapping[str, Any]) -> PrecisionChoice:
    """Judge a measurement and keep both for good; what another scorer has kept in the meantime stands."""
    why_not = refusal(measured, tolerance)
    record = {**measured, "bundle_sha256": bundle_sha256, "tolerance": tolerance, "used": not why_not, "why_not": why_not}
    key = record_key(bundle_sha256, tolerance)
    kept = open_store(root).put_if_absent(key, canonical_json(record).encode())
    return choice_of(record if kept else parse_json(open_store(root), key))


def choice_of(record: Mapping[str, Any]) -> PrecisionChoice:
    """What a record says to do."""
    return PrecisionChoice("int8", record["canary_moves"], record) if record["used"] else PrecisionChoice(record=record)


def refusal(measured: Mapping[str, Any], tolerance: float) -> str:
    """Why int8 is not to be used; empty: it is."""
    if measured["failed"]:
        return f"it could not be measured: {measured['failed']}"
    if not any(task["rows"] for task in measured["tasks"].values()):
        return "there was no valid row to measure it on"
    if not measured["matrices"]:
        return "no matrix of this model can be int8: they are narrow, or the adapter's method has no weight for a task"
    for name, task in measured["tasks"].items():
        if not task["mean"] <= tolerance:
            return f"{name}'s probabilities move by {task['mean']:.4f} on average, more than scoring.int8_tolerance {tolerance}"
        for what in ("labels", "decisions"):
            if task[what] > MAX_CHANGED * task["rows"]:
                return f"{task[what]} of {task['rows']} {what} of {name} are other, more than {MAX_CHANGED:.0%}"
    speed = speed_of(measured["tasks"].values())
    return "" if speed >= MIN_SPEED else f"it is {speed:.2f} times as fast here, and {MIN_SPEED} was asked for"


def speed_of(tasks: Any) -> float:
    """The pace in int8 over the native one, over all rows that were timed."""
    spent = [sum(task[name] for task in tasks) for name in ("native_s", "int8_s")]
    return float(spent[0] / spent[1]) if spent[1] else 0.0


def choice_lines(choice: PrecisionChoice, place: str) -> list[str]:
    """The measurement and what follows from it, for people; no line where nobody asked for int8."""
    record = choice.record
    if record is None:
        return []
    lines = []
    for name, task in record["tasks"].items():
        moves = f"int8: {name}'s probabilities move by {task['mean']:.4f} on average, {task['largest']:.4f} at most"
        changed = f"{task['labels']} labels and {task['decisions']} decisions of {task['rows']} are other"
        lines.append(f"{moves}; {changed}; {speed_of([task]):.2f} times as fast")
    if record["used"]:
        return [*lines, f"int8: used, {speed_of(record['tasks'].values()):.2f} times as fast over all tasks"]
    key = record_key(record["bundle_sha256"], record["tolerance"])
    return [*lines, f"int8: not used, labels are of the native precision: {record['why_not']}. This stands in {place}/{key}"]
