"""What a manifest of labels says beside the names of its files, and how a run reads it again."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.tasks import Task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.evaluation.score_reference import Profile, profile_of
from pipeline.inference.labels import ScoringContext
from pipeline.scoring.work_units import Unit


def label_facts(
    unit: Unit,
    tasks: Sequence[Task],
    num_rows: int,
    scored: pa.Table,
    markets: list[str | None],
    context: ScoringContext,
) -> dict[str, Any]:
    """The facts of a unit of `num_rows` rows. `scored`: its labels, those of one task after those of another;
    `markets`: of each row that has some.

    `task` is whose folder the rows lie in. Those that were judged for all tasks have `tasks` and `profiles`
    by task; others `profile`, of that one.
    """
    profiles = {}
    for number, task in enumerate(tasks):
        of_task = scored.slice(number * len(markets), len(markets))
        probability_N, label_N = of_task.column("probability").to_numpy(), of_task.column("label").to_numpy()
        profiles[task.name] = profile_of(probability_N, label_N, markets, len(task.labels))
    return {
        "task": unit.task,
        "input": {"path": unit.path, "digest": unit.digest, "part": unit.part, "rows": num_rows},
        "model_version": context.model_version,
        "bundle_sha256": context.bundle_sha256,
        "encoder_version": ENCODER_VERSION,
        **(
            {"tasks": list(profiles), "profiles": profiles}
            if unit.all_tasks
            else {"profile": profiles[unit.task]}
        ),
    }


def profiles_of(manifest: Mapping[str, Any]) -> dict[str, Profile]:
    """How a partition's scores are spread, by task."""
    return (
        dict(manifest["profiles"])
        if "profiles" in manifest
        else {manifest["task"]: manifest.get("profile", {})}
    )
