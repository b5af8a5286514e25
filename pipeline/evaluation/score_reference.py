"""What goes with a version to tell, where it is scored with, whether it still says the same: canary rows with
their probabilities, and how probabilities and labels were spread over the test rows.

Shape legend: N rows, C labels of the task.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedInputError
from pipeline.inference.calibration import relevance_probability
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.inference.predictor import Judge
from pipeline.inference.probabilities import judge_all_tasks, judge_rows
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.filesystem import read_json

CANARY_ROWS = 8  # of each task

BINS = 20  # of the probability, from 0 to 1

FORMAT = 1

Profile = dict[str, dict[str, list[int]]]  # market -> probability and labels -> counts


def build_reference(
    judge: Judge,
    bundle_sha256: str,
    tables: Mapping[str, pa.Table],
    probabilities: Mapping[str, np.ndarray],
    batch_tokens: int,
) -> dict[str, Any]:
    """The reference of a bundle, json, from rows of each task and what the judge said of them, label
    probabilities (N, C) by task. The canary rows are judged again by themselves, as they will be: bfloat16
    differs with the rows beside them.
    """
    canaries, profiles = {}, {}
    for task in judge.tasks:
        if task.name not in probabilities:
            continue
        table, probability_NC = tables[task.name], probabilities[task.name]
        rows = table.slice(0, CANARY_ROWS)
        canary_N = relevance_probability(judge_rows(judge, rows, task, batch_tokens), task)
        canaries[task.name] = {"rows": rows.to_pylist(), "probability": canary_N.tolist()}
        probability_N, label_N = relevance_probability(probability_NC, task), probability_NC.argmax(axis=1)
        profiles[task.name] = profile_of(
            probability_N, label_N, table.column("market").to_pylist(), len(task.labels)
        )
    return {"format": FORMAT, "bundle_sha256": bundle_sha256, "canaries": canaries, "profiles": profiles}


def read_reference(path: Path, bundle_sha256: str) -> dict[str, Any]:
    """The reference of a bundle. DamagedInputError: the file is another's, or none."""
    reference = read_json(path)
    if reference.get("format") != FORMAT or reference.get("bundle_sha256") != bundle_sha256:
        raise DamagedInputError(
            f"{path} is not the reference of bundle {bundle_sha256[:12]}; register that bundle again"
        )
    return dict(reference)


def canary_difference(
    judge: Judge, reference: Mapping[str, Any], batch_tokens: int, all_tasks: AllTasksJudge | None = None
) -> float:
    """How far the judge's probabilities of the canary rows are from those of the reference, at most.
    `all_tasks`: it judges, in the judge's place.
    """
    largest = 0.0
    for task in judge.tasks:
        canary = reference["canaries"].get(task.name)
        if canary is not None:
            table = pa.Table.from_pylist(canary["rows"], ROW_SCHEMA)
            by_all = judge_all_tasks(all_tasks, table, batch_tokens) if all_tasks else {}
            probability_NC = by_all[task.name] if all_tasks else judge_rows(judge, table, task, batch_tokens)
            probability_N = relevance_probability(probability_NC, task)
            largest = max(largest, float(np.abs(probability_N - canary["probability"]).max()))
    return largest


def profile_of(
    probability_N: np.ndarray, label_N: np.ndarray, markets: list[str | None], num_labels: int
) -> Profile:
    """How probabilities and labels are spread, market by market."""
    market_N = np.array([market or "" for market in markets], dtype=object)
    found: Profile = {}
    for market in sorted(set(market_N.tolist())):
        mine = market_N == market
        bins = np.minimum((probability_N[mine] * BINS).astype(int), BINS - 1)
        found[market] = {
            "probability": np.bincount(bins, minlength=BINS).tolist(),
            "labels": np.bincount(label_N[mine], minlength=num_labels).tolist(),
        }
    return found


def add_profile(total: Profile, more: Mapping[str, Mapping[str, list[int]]]) -> None:
    """Add the counts of some rows to those of others."""
    for market, counts in more.items():
        mine = total.setdefault(market, {name: [0] * len(values) for name, values in counts.items()})
        for name, values in counts.items():
            mine[name] = [one + other for one, other in zip(mine[name], values, strict=True)]
