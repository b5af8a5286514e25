"""A bundle, rows to score with it, and the actor that does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.serialization.bundle import write_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.inference.predictor import Judge, describe, fresh_judge
from pipeline.registry.version_files import FetchedVersion
from pipeline.scoring.actor import UnitScorer
from pipeline.scoring.ray_pipeline import actor_settings
from pipeline.scoring.work_units import Unit, plan_units
from tests.support.planted import planted_config, planted_rows, write_rows

ROWS = 4


class World:
    """A bundle, and units of which some hold a poison row."""

    def __init__(
        self,
        root: Path,
        tiny_llama: Path,
        *poisons: str,
        prepare: Callable[[Judge], None] = lambda judge: None,
        **blocks: Any,
    ) -> None:
        """`prepare`: what training and calibration would do to the judge; `blocks`: of the config."""
        for number, poison in enumerate(("", *poisons, "")):
            rows = planted_rows("two", ROWS, number, labelled=False)
            rows[2]["query"] += f" POISON {poison}" * bool(poison)
            write_rows(rows, root / "to_score" / "task=two" / f"part-{number}-{poison or 'good'}.parquet")
        self.root, scoring = root, blocks.pop("scoring", {})
        self.plain = planted_config(
            root, str(tiny_llama), scoring={"threads_per_actor": 1, "hang_timeout_s": 8, **scoring}, **blocks
        )
        self.config: RunConfig = build_config(self.plain, "test")
        judge = fresh_judge(self.config)
        prepare(judge)
        facts = describe(judge, self.config, {"fingerprint": "f" * 64})
        self.sha256 = write_bundle(
            root / "bundle", facts, judge.model.trainable_state(), judge.backbone.folder
        )

    @property
    def version(self) -> FetchedVersion:
        return FetchedVersion("1", self.root / "bundle", self.sha256)

    @property
    def scores_dir(self) -> Path:
        return self.config.run_dir / "scores"

    def units(self, all_tasks: bool = False) -> list[Unit]:
        return plan_units(self.config, self.sha256, all_tasks)[0]

    def scorer(self) -> UnitScorer:
        attempts_dir = self.root / "attempts"
        attempts_dir.mkdir(exist_ok=True)
        return UnitScorer(actor_settings(self.config, self.version, attempts_dir))
