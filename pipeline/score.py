"""The batch scoring job: Ray Data hands partitions to actors, each actor judges and publishes whole partitions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.commit import is_published, partition_id, publish_partition
from pipeline.config import RunConfig
from pipeline.encode import ENCODER_VERSION
from pipeline.errors import RelevanceError
from pipeline.files import file_sha256
from pipeline.reader import find_partitions, read_partition

MAX_ATTEMPTS = 3  # of a unit whose actor dies; Ray's own default is without end


@dataclass(frozen=True)
class Unit:
    """One input file to score under one model."""

    task: str
    path: str
    input_sha256: str
    partition: str


def plan_units(config: RunConfig, bundle_sha256: str) -> tuple[list[Unit], int]:
    """(units still to score, number already published), in a fixed order."""
    root, scores = config.to_score_dir, config.run_dir / "scores"
    units, published = [], 0
    for task, paths in find_partitions(root, config.tasks).items():
        for path in paths:
            sha256 = file_sha256(path)
            partition = partition_id(task, str(path.relative_to(root)), sha256, bundle_sha256, ENCODER_VERSION)
            if is_published(scores, partition):
                published += 1
            else:
                units.append(Unit(task, str(path), sha256, partition))
    return units, published


class UnitScorer:
    """A Ray Data actor: holds one verified model, scores one unit a call. Each call returns what became of the unit."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        from pipeline.judge import load_judge

        torch.set_num_threads(settings["threads"])
        device = torch.device("cuda" if settings["use_gpu"] else "cpu")
        self.judge, self.bundle = load_judge(Path(settings["bundle_dir"]), settings["bundle_sha256"], device)
        self.settings = settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = ("task", "path", "input_sha256", "partition")
        outcomes = [self._outcome(Unit(*(str(batch[name][i]) for name in names))) for i in range(len(batch["path"]))]
        return {"partition": [o[0] for o in outcomes], "rows": [o[1] for o in outcomes], "error": [o[2] for o in outcomes]}

    def _outcome(self, unit: Unit) -> tuple[str, int, str]:
        try:
            return unit.partition, self._score(unit), ""
        except (RelevanceError, OSError) as error:
            return unit.partition, 0, f"{unit.path}: {error}"

    def _score(self, unit: Unit) -> int:
        """Judge and publish one unit; returns its rows."""
        from pipeline.scores import score_rows
        from pipeline.tasks import check_known_task

        task = check_known_task(unit.task, self.judge.tasks, "the model's bundle")
        table = read_partition(Path(unit.path))
        scored = score_rows(self.judge, table, task, self.settings["batch_tokens"], self.settings["model_version"], self.bundle.sha256)
        facts = {
            "task": unit.task,
            "input": {"path": unit.path, "sha256": unit.input_sha256, "rows": table.num_rows},
            "model_version": self.settings["model_version"],
            "bundle_sha256": self.bundle.sha256,
            "encoder_version": ENCODER_VERSION,
        }
        publish_partition(Path(self.settings["scores_dir"]), unit.partition, scored, facts)
        return table.num_rows


def run_scoring(
    config: RunConfig, units: list[Unit], bundle_dir: Path, bundle_sha256: str, model_version: str, on_unit: Callable[[int, int], None]
) -> tuple[int, list[str]]:
    """Score the units that `plan_units` found to do. `on_unit` gets (units done, rows scored so far).

    Returns the rows scored, and the errors of units that could not be scored; the others are published.
    """
    rows, errors = 0, []
    for done, outcome in enumerate(scored_units(config, units, bundle_dir, bundle_sha256, model_version), start=1):
        rows += int(outcome["rows"])
        errors += [outcome["error"]] if outcome["error"] else []
        on_unit(done, rows)
    return rows, errors


def scored_units(config: RunConfig, units: list[Unit], bundle_dir: Path, bundle_sha256: str, model_version: str) -> Any:
    """Each unit's outcome as it comes, out of a Ray Data pipeline of one actor pool."""
    import ray

    scoring = config.scoring
    settings = {
        "bundle_dir": str(bundle_dir),
        "bundle_sha256": bundle_sha256,
        "model_version": model_version,
        "scores_dir": str(config.run_dir / "scores"),
        "threads": scoring.threads_per_actor,
        "batch_tokens": scoring.batch_tokens,
        "use_gpu": scoring.use_gpu,
    }
    dataset = ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units)).map_batches(
        UnitScorer,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(scoring.num_actors, len(units))),
        num_cpus=scoring.threads_per_actor,
        num_gpus=1 if scoring.use_gpu else 0,
        max_restarts=MAX_ATTEMPTS - 1,
        max_task_retries=MAX_ATTEMPTS - 1,
    )
    yield from dataset.iter_rows()
