"""Two versions on the same rows: paired differences, redrawn query by query.

Shape legend: D bootstrap draws.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.errors import ConfigError
from pipeline.evaluation.bootstrap import Interval, interval
from pipeline.evaluation.runner import markets_of, said_by
from pipeline.evaluation.slices import cut
from pipeline.evaluation.task_metrics import SLICE_ROWS, Said, Truth, as_json, measured, rows_of
from pipeline.inference.predictor import Judge

SLICED = "pr_auc"

TIMED_ROWS = 256  # of each version in turn, for its throughput

TIMED_ROUNDS = 3


@dataclass(frozen=True)
class TaskComparison:
    """One task: figures of both, and challenger minus champion."""

    challenger: Mapping[str, Interval]
    champion: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    difference_D: np.ndarray  # of PR-AUC
    slices: tuple[dict[str, Any], ...]  # by, slice, rows, difference of PR-AUC


@dataclass(frozen=True)
class Comparison:
    """All tasks that both versions know, and how fast the versions judge."""

    tasks: Mapping[str, TaskComparison]
    # tasks of the champion that the challenger does not know, or that have no rows of both classes
    not_compared: tuple[str, ...]
    macro_pr_auc: Interval  # challenger minus champion
    speed_ratio: float  # challenger's rows a second over the champion's

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        tasks = {
            name: {side: as_json(getattr(task, side)) for side in ("challenger", "champion", "difference")}
            | {"slices": list(task.slices)}
            for name, task in self.tasks.items()
        }
        macro = as_json({"macro_pr_auc_difference": self.macro_pr_auc})
        return {
            "tasks": tasks,
            "not_compared": list(self.not_compared),
            **macro,
            "speed_ratio": self.speed_ratio,
        }


def compare_judges(
    challenger: Judge, champion: Judge, tables: Mapping[str, pa.Table], batch_tokens: int, seed: int
) -> Comparison:
    """Both on contract rows of each task, each with its own templates and calibration. `tables` hold judged
    rows of both classes.

    ConfigError: there is no task that both know, or one has other labels than the other.
    """
    both = [task for task in challenger.tasks if task.name in tables and same_task(task, champion.tasks)]
    if not both:
        raise ConfigError(
            "the versions know no task in common that has both relevant and irrelevant test rows; there "
            "is nothing to compare"
        )
    tasks = {}
    for position, task in enumerate(both):
        table = tables[task.name]
        truth = truth_of(task, table)
        said = [said_of(judge, table, task.name, batch_tokens) for judge in (challenger, champion)]
        tasks[task.name] = compare_task(truth, said[0], said[1], seed + position)
    value = float(np.mean([task.difference["pr_auc"].value for task in tasks.values()]))
    macro = interval(value, np.mean([task.difference_D for task in tasks.values()], axis=0))
    missing = tuple(task.name for task in champion.tasks if task.name not in tasks)
    return Comparison(
        tasks,
        missing,
        macro,
        speed_ratio(challenger, champion, {task.name: tables[task.name] for task in both}, batch_tokens),
    )


def same_task(task: Task, others: Sequence[Task], where: str = "the two versions") -> bool:
    """Whether a task is among others. ConfigError: it is, with other labels; `where` tells people in which
    two places they differ.
    """
    known = next((one for one in others if one.name == task.name), None)
    if known is not None and (known.labels, known.relevant_from) != (task.labels, task.relevant_from):
        raise ConfigError(f"task {task.name} has unlike labels in {where}; they cannot be compared")
    return known is not None


def truth_of(task: Task, table: pa.Table) -> Truth:
    """Judged rows of one task."""
    return Truth(
        task,
        np.asarray(table.column("query").to_pylist(), dtype=object),
        table.column("label").to_numpy(),
        cut(table, task.labels),
    )


def said_of(judge: Judge, table: pa.Table, task_name: str, batch_tokens: int) -> Said:
    """What a version says of one task's rows."""
    task = next(known for known in judge.tasks if known.name == task_name)
    logits_NC = judge.logits(judge.encode({task_name: table}), batch_tokens)[:, : len(task.labels)]
    return said_by(logits_NC, judge.calibration[task_name], task, markets_of(table))


def compare_task(truth: Truth, challenger: Said, champion: Said, seed: int) -> TaskComparison:
    """Figures of both and their differences, draw by draw on the same queries."""
    (mine, mine_D), (other, other_D) = measured(truth, challenger, seed), measured(truth, champion, seed)
    difference = differences(mine, mine_D, other, other_D)
    return TaskComparison(
        mine,
        other,
        difference,
        mine_D["pr_auc"] - other_D["pr_auc"],
        tuple(slice_differences(truth, challenger, champion, seed)),
    )


def differences(
    mine: Mapping[str, Interval],
    mine_D: Mapping[str, np.ndarray],
    other: Mapping[str, Interval],
    other_D: Mapping[str, np.ndarray],
) -> dict[str, Interval]:
    """Mine minus the other's, of every figure that both have; the draws (D,) are of the same queries."""
    return {
        name: interval(mine[name].value - other[name].value, mine_D[name] - other_D[name])
        for name in mine
        if name in other
    }


def slice_differences(truth: Truth, challenger: Said, champion: Said, seed: int) -> list[dict[str, Any]]:
    """Challenger minus champion on each slice that has rows enough and both classes."""
    found = []
    for by, name_N in truth.slices.items():
        for name in sorted(set(name_N.tolist())):
            chosen_N = name_N == name
            part = truth.rows(chosen_N)
            if chosen_N.sum() < SLICE_ROWS or part.positive_N.all() or not part.positive_N.any():
                continue
            (mine, mine_D), (other, other_D) = (
                measured(part, rows_of(said, chosen_N), seed) for said in (challenger, champion)
            )
            gap = interval(mine[SLICED].value - other[SLICED].value, mine_D[SLICED] - other_D[SLICED])
            found.append({"by": by, "slice": name, "rows": int(chosen_N.sum()), "difference": asdict(gap)})
    return found


def speed_ratio(
    challenger: Judge, champion: Judge, tables: Mapping[str, pa.Table], batch_tokens: int
) -> float:
    """Rows a second of one over the other's, in turn on the same rows; the median of a few rounds."""
    rows = {name: table.slice(0, max(1, TIMED_ROWS // len(tables))) for name, table in tables.items()}
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(TIMED_ROUNDS):
        for number, judge in enumerate((challenger, champion)):
            started_s = time.perf_counter()
            judge.logits(judge.encode(rows), batch_tokens)
            seconds[number].append(time.perf_counter() - started_s)
    return float(np.median(seconds[1]) / np.median(seconds[0]))
