"""Files of rows to score, and runs over them that publish made-up labels without a model."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import RelevanceError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.duplicates import ScoringRounds, read_duplicates
from pipeline.scoring.label_store import publish_unit, read_errors, read_manifests
from pipeline.scoring.row_errors import FirstPlaces, split_valid_rows
from pipeline.scoring.unit_manifest import UnitInput
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit, read_unit
from tests.support.planted import planted_config
from tests.support.score_partitions import score_table, unit_manifest
from tests.support.scoring_world import full_plan

TASKS = ("two", "three")

NULLABLE_SCHEMA = pa.schema([column.with_nullable(True) for column in ROW_SCHEMA])


@dataclass
class Inputs:
    """Files of rows to score, and the labels that runs publish."""

    root: Path
    all_tasks: bool = False

    @property
    def config(self) -> RunConfig:
        data = {"to_score": str(self.root / "to_score")}
        scoring = {"scores": str(self.root / "scores")}
        return build_config(
            {**planted_config(self.root, "nowhere"), "data": data, "scoring": scoring}, "test"
        )

    def write(self, name: str, *row_ids: str | None, blank: str = "") -> str:
        """Write the file task=<task>/<name>, and return its path; the query of row id `blank` is blank."""
        path = self.root / "to_score" / f"task={name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {"ad_title": "lamp", "market": "us"}
        rows = [{"row_id": row, "query": "" if row == blank else "lamp", **texts} for row in row_ids]
        pq.write_table(pa.Table.from_pylist(rows, NULLABLE_SCHEMA), path, row_group_size=3)
        return str(path)

    def run(
        self, kept_share: float = 1.0, seed: int = 0, failing: Mapping[str, bool] | None = None
    ) -> dict[str, UnitResult]:
        """Score the units that are not published, in any order; a killed run leaves some out.

        Args:
            kept_share: Of the units of each round.
            seed: Of the order, and of the units that are left out.
            failing: Paths of files that cannot be scored, with whether another attempt may succeed.

        Returns:
            The failures by path.
        """
        draw, rounds = random.Random(seed), self.rounds()
        results: list[UnitResult] = []
        while units := rounds.next_units(results):
            kept = [unit for unit in draw.sample(units, len(units)) if draw.random() < kept_share]
            results += [self.score(unit, failing or {}) for unit in kept]
            if len(kept) < len(units):
                return {}
        results += rounds.describe_waiting()
        return {result.path: result for result in results if result.error}

    def rounds(self) -> ScoringRounds:
        """Return the rounds of the next run."""
        plan = full_plan(self.config, "b", self.all_tasks)
        plan.inputs.save()
        folder = self.attempts_dir
        folder.mkdir(exist_ok=True)
        rounds = ScoringRounds(plan, self.config.scores_location, folder)
        assert {path.suffix for path in folder.iterdir()} <= {".parquet"}
        return rounds

    @property
    def attempts_dir(self) -> Path:
        return self.root / "attempts"

    def score(self, unit: WorkUnit, failing: Mapping[str, bool]) -> UnitResult:
        """Publish a unit as an actor does, with made-up probabilities."""
        if unit.path in failing:
            return UnitResult(unit.unit_id, unit.path, error="crashed", retry=failing[unit.path])
        try:
            self.publish(unit)
        except RelevanceError as error:
            return UnitResult(unit.unit_id, unit.path, error=str(error))
        return UnitResult(unit.unit_id, unit.path)

    def publish(self, unit: WorkUnit) -> None:
        places = FirstPlaces(read_duplicates(self.attempts_dir, unit))
        parts = [split_valid_rows(rows, unit.task, first, "b", places) for rows, first in read_unit(unit)]
        valid, errors = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
        tasks = TASKS if self.all_tasks else (unit.task,)
        filler: dict[str, Any] = score_table(1).to_pylist()[0] | {"bundle_sha256": "b"}
        ids = valid["row_id"].to_pylist()
        labels = [{**filler, "row_id": row_id, "task": task} for task in tasks for row_id in ids]
        manifest = unit_manifest(
            unit.unit_id,
            task=unit.task,
            bundle_sha256="b",
            tasks=tasks,
            input=UnitInput(unit.path, unit.digest, unit.part, valid.num_rows + errors.num_rows),
        )
        publish_unit(
            self.config.scores_location, manifest, pa.Table.from_pylist(labels, SCORE_SCHEMA), errors
        )

    def labels(self) -> Counter[tuple[str, str]]:
        """Count the published labels by row id and task, in all label files."""
        scores = Path(self.config.scores_location)
        labels: Counter[tuple[str, str]] = Counter()
        for manifest in read_manifests(scores):
            for file in manifest.label_files:
                table = pq.read_table(scores / file.path)
                labels.update(zip(table["row_id"].to_pylist(), table["task"].to_pylist(), strict=True))
        return labels

    def errors(self) -> list[tuple[str, int, str]]:
        """Return (row id, row, reason) of all errors."""
        rows = read_errors(self.config.scores_location).to_pylist()
        return sorted((str(row["row_id"]), row["row"], row["reason"]) for row in rows)
