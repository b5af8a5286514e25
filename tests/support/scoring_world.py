"""A bundle, rows to score with it, and an actor that scores them without Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.inference.predictor import Predictor, build_predictor
from pipeline.registry.version_files import VersionFiles
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.actor_settings import build_actor_settings
from pipeline.scoring.scoring_record import ScoringRecord, ScoringRun, build_scoring_record, put_record
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import Plan, WorkUnit, plan_units
from tests.support.bundles import write_evaluated_bundle
from tests.support.planted import planted_config, planted_rows, write_rows

ROWS = 4


class World:
    """A bundle, and units of ROWS rows, some of which hold a poison row."""

    def __init__(
        self,
        root: Path,
        tiny_llama: Path,
        *poisons: str,
        prepare: Callable[[Predictor], None] = lambda predictor: None,
        **blocks: Any,
    ) -> None:
        """Write the bundle and the rows.

        Args:
            root: Folder to write to.
            tiny_llama: The backbone.
            poisons: Word in the third row's query of one unit each.
            prepare: Changes the predictor as training and calibration would.
            blocks: Blocks of the config.
        """
        for number, poison in enumerate(("", *poisons, "")):
            rows = planted_rows("two", ROWS, number, labeled=False)
            if poison:
                rows[2]["query"] += f" POISON {poison}"
            write_rows(rows, root / "to_score" / "task=two" / f"part-{number}-{poison or 'good'}.parquet")
        self.root, scoring = root, blocks.pop("scoring", {})
        # the watchdog would also end a test process that a busy machine slows down
        hang_timeout_s = 8 if {"hang", "stop"} & {*poisons} else 120
        settings = {"threads_per_actor": 1, "hang_timeout_s": hang_timeout_s, **scoring}
        self.plain = planted_config(root, str(tiny_llama), scoring=settings, **blocks)
        self.config: RunConfig = build_config(self.plain, "test")
        predictor = build_predictor(self.config)
        prepare(predictor)
        self.sha256 = write_evaluated_bundle(root / "bundle", predictor, self.config)

    def write_reference(self, reference: dict[str, Any]) -> None:
        """Write the bundle again with a reference, as an evaluation does."""
        bundle = read_bundle(self.root / "bundle")
        self.sha256 = write_bundle(
            bundle.folder, bundle.description, bundle.tensors, bundle.tokenizer_dir, reference
        )

    @property
    def version(self) -> VersionFiles:
        return VersionFiles("1", self.root / "bundle", self.sha256)

    @property
    def scores_dir(self) -> Path:
        return self.config.run_dir / "scores"

    def units(self, all_tasks: bool = False) -> list[WorkUnit]:
        """Return the units that are not published yet."""
        return plan(self.config, self.sha256, all_tasks)[0]

    def scorer(self) -> UnitScorer:
        """Return a new actor; all actors of a world share their notes about attempts."""
        attempts_dir = self.root / "attempts"
        attempts_dir.mkdir(exist_ok=True)
        return build_scorer(self.config, self.version, attempts_dir)

    def build_record(self, run: str, units: list[WorkUnit], results: list[UnitResult]) -> ScoringRecord:
        """Return the record of a run over units."""
        scoring_run = ScoringRun(run, self.version, 0.0, 1.0, None)
        return build_scoring_record(self.config.scores_location, scoring_run, units, results)

    def score_run(self, run: str, all_tasks: bool = False) -> tuple[ScoringRecord, list[UnitResult]]:
        """Score all units that are left, and store the run's record."""
        scorer, units = self.scorer(), self.units(all_tasks)
        results = [scorer.score_unit(unit) for unit in units]
        assert not any(result.error for result in results), results
        record = self.build_record(run, units, results)
        put_record(self.config.scores_location, record)
        return record, results


def plan(
    config: RunConfig, bundle_sha256: str, all_tasks: bool = False
) -> tuple[list[WorkUnit], list[WorkUnit]]:
    """Return (units to score, published units) of a config."""
    return full_plan(config, bundle_sha256, all_tasks)[:2]


def full_plan(config: RunConfig, bundle_sha256: str, all_tasks: bool = False) -> Plan:
    """Return the plan of a config."""
    return plan_units(
        config.to_score_location, config.scores_location, config.tasks, bundle_sha256, all_tasks
    )


def build_scorer(config: RunConfig, version: VersionFiles, attempts_dir: Path) -> UnitScorer:
    """Return an actor with a config's settings."""
    settings = build_actor_settings(config.scoring, config.scores_location, version, attempts_dir)
    return UnitScorer(settings)


def by_name(results: Sequence[UnitResult]) -> dict[str, UnitResult]:
    """Return results by the last part of their files' names, as `good` of part-0-good.parquet."""
    return {Path(result.path).stem.rpartition("-")[2]: result for result in results}
