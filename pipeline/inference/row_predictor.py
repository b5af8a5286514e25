"""Logits of rows by a model, from a pool of actors. They are published, so that later commands read them.

    <root>/<model>/<name of the rows>/<unit>/<attempt>.parquet   PREDICTION_SCHEMA
    <root>/<model>/manifests/<unit>.json                         published last; names the file and the device

<model> is the digest of what a model's logits follow from: versions that differ in calibration alone share
it. A unit's id has the digest of its rows' texts, the kind of device, the size of a batch, and the versions
of torch, transformers and this code: if any of them changes, the unit is predicted again. The folder may be
removed at any time, as after a change of hardware.

Shape legend: N rows of a task, C its labels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from models.files import remove_tree
from pipeline.config.scoring import ScoringConfig
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.actor_pool import Pool, PoolUnit
from pipeline.inference.attempts import create_attempts_dir
from pipeline.inference.bundle_description import logits_sha256, read_described_bundle
from pipeline.inference.model_actor import ModelActorSettings, UnitFailure, failure_error
from pipeline.inference.predictor import BundleModel
from pipeline.inference.speed_trial import SpeedSettings, SpeedTrial, join_timed_rows, speed_ratio
from pipeline.inference.unit_predictor import (
    PredictionResult,
    PredictionSettings,
    PredictionUnit,
    UnitPredictor,
    write_rows,
)
from pipeline.publishing.unit_store import (
    PublishedFile,
    build_unit_id,
    list_published_units,
    open_table,
    read_manifests,
    sweep_orphans,
)
from pipeline.runtime.progress import Progress
from pipeline.runtime.run_log import RunLog
from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS
from pipeline.storage.filesystem import json_sha256
from pipeline.storage.object_store import open_store

logger = logging.getLogger(__name__)

UNIT_ROWS = 1_024  # a killed command repeats as many rows for each actor

PREDICTION_VERSION = 1  # changes when the code of the models computes other logits

ATTEMPTS = "attempts"  # folder beside the published predictions of a model

SPEED = "speed"  # folder of measured seconds

Tables = Mapping[str, pa.Table]  # contract rows by task


class Engine(Protocol):
    """Runner of pools of actors."""

    def do_units(
        self, pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[[str, str], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield each unit's result; see `pipeline.inference.actor_pool.do_units`."""


@dataclass(frozen=True)
class RowPredictor:
    """Predictor of rows for one command.

    Attributes:
        root: Folder of all published predictions.
        engine: Where the actors work.
        progress: Shows predicted rows.
        name: Name of the command's run, unique.
        log: Log of the command, to which the actors write as well.
    """

    root: Path
    engine: Engine
    progress: Progress
    name: str
    log: RunLog | None = None

    def logits(
        self, model: BundleModel, rows: Mapping[str, Tables], actors: ScoringConfig
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the logits of rows: those that are published are read, the others are predicted first.

        Args:
            model: The model.
            rows: Sets of contract rows by name, each by task of the model.
            actors: Settings of the actors.

        Returns:
            By name of the set and by task: (N, C) float64 in the order of the rows.

        Raises:
            ConfigError: The model has no task of that name, or a setting does not fit.
            RelevanceError: Some rows could not be predicted; the others are published.
            DamagedInputError: The bundle or a published file is damaged.
        """
        published = _PredictionStore.open(self.root, model)
        parts = {
            (name, task): _split(name, _known_task(task, published.tasks), table, actors)
            for name, tables in rows.items()
            for task, table in tables.items()
        }
        self._publish_missing(published, [part for of_task in parts.values() for part in of_task], actors)
        logits: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows}
        for (name, task), of_task in parts.items():
            num_labels = len(_known_task(task, published.tasks).labels)
            logits[name][task] = published.read_logits(of_task, num_labels)
        return logits

    def speed_ratio(
        self, model: BundleModel, other: BundleModel, tables: Tables, actors: ScoringConfig
    ) -> float:
        """Return a model's rows per second divided by another's, both in turn in one actor.

        It is measured once for the same rows and kind of device.

        Args:
            model: The model.
            other: The other.
            tables: Contract rows by task of both models; the first ones are predicted.
            actors: Settings of the actor.

        Raises:
            RelevanceError: A model cannot predict the rows.
            DamagedInputError: A bundle or the published file is damaged.
        """
        published = _PredictionStore.open(self.root, model)
        rows = join_timed_rows(tables)
        identity = {
            "other": _PredictionStore.open(self.root, other).sha256,
            "threads": actors.threads_per_actor,
            "rows": _digest_of(rows, [*TEXT_COLUMNS, "task"]),
            **_identity(actors),
        }
        unit = PredictionUnit(build_unit_id(SPEED, identity), "", SPEED)
        self._publish_missing(published, [_Part(unit, rows)], actors, other)
        return speed_ratio(published.read_table(unit.unit_id))

    def _publish_missing(
        self,
        published: "_PredictionStore",
        parts: Sequence["_Part"],
        actors: ScoringConfig,
        other: BundleModel | None = None,
    ) -> None:
        """Publish the units that are not published yet; with another model, time both."""
        known = list_published_units(published.location)
        to_do = {part.unit.unit_id: part for part in parts if part.unit.unit_id not in known}
        if not to_do:
            return
        sweep_orphans(published.location, {part.unit.rows_name for part in parts})
        attempts_dir = create_attempts_dir(published.location, ATTEMPTS, self.name)
        settings = PredictionSettings(
            str(published.location), ModelActorSettings(published.model, actors, attempts_dir, self.log)
        )
        pool = Pool(UnitPredictor, settings, actors, attempts_dir)
        if other is not None:
            pool = Pool(SpeedTrial, SpeedSettings(settings, other), actors, attempts_dir)
        num_rows = sum(len(part.rows) for part in parts)
        num_new = sum(len(part.rows) for part in to_do.values())
        logger.info(f"  {num_new:,} rows to predict, {num_rows - num_new:,} predicted already")
        if failures := self._do_units(pool, to_do):
            published_text = "" if len(failures) == len(to_do) else ", the others are published"
            problem = f"{len(failures)} of {len(to_do)} work units were not predicted{published_text}"
            raise failure_error(failures, problem)
        remove_tree(attempts_dir)

    def _do_units(self, pool: Pool, to_do: Mapping[str, "_Part"]) -> list[UnitFailure]:
        """Do the units, and return the failures."""
        num_rows = {unit_id: len(part.rows) for unit_id, part in to_do.items()}
        units = {
            unit_id: PoolUnit(part.unit.to_json(), write_rows(part.rows)) for unit_id, part in to_do.items()
        }

        def give_up(unit_id: str, reason: str) -> dict[str, Any]:
            return PredictionResult(unit_id, UnitFailure(reason, retry=True)).to_json()

        num_done, failures = 0, []
        with self.progress.track("predict", sum(num_rows.values()), "pairs") as bar:
            for fields in self.engine.do_units(pool, units, give_up):
                result = PredictionResult.from_json(fields)
                num_done += num_rows[result.unit_id]
                bar.update(num_done)
                if result.failure:
                    failures.append(result.failure)
        return failures


@dataclass(frozen=True)
class _Part:
    """A unit and its rows."""

    unit: PredictionUnit
    rows: pa.Table


@dataclass(frozen=True)
class _PredictionStore:
    """A model and the store of its published predictions."""

    model: BundleModel
    sha256: str  # of what the logits follow from
    tasks: tuple[Task, ...]
    location: Path

    @classmethod
    def open(cls, root: Path, model: BundleModel) -> "_PredictionStore":
        """Return the store of a model, whose bundle is verified."""
        bundle, description = read_described_bundle(model.folder, model.sha256)
        sha256 = logits_sha256(bundle, description, model.is_trained)
        verified = replace(model, sha256=bundle.sha256)  # actors refuse a bundle that changes meanwhile
        return cls(verified, sha256, description.tasks, root / sha256)

    def read_logits(self, parts: Sequence[_Part], num_labels: int) -> np.ndarray:
        """Return the logits (N, C) of published parts, in their order."""
        logits = [np.zeros((0, num_labels))]
        for part in parts:
            table = self.read_table(part.unit.unit_id)
            if not table.column("row_id").equals(part.rows.column("row_id")):
                raise DamagedInputError(
                    f"{self.location} has other rows in unit {part.unit.unit_id}; remove the folder and run "
                    "the same command again"
                )
            values = table.column("logits").combine_chunks().flatten().to_numpy()
            logits.append(values.reshape(len(part.rows), num_labels))
        return np.concatenate(logits)

    def read_table(self, unit_id: str) -> pa.Table:
        """Return the table of a published unit; DamagedInputError if it is missing or altered."""
        ((file,),) = read_manifests(self.location, _named_files, [unit_id])
        return open_table(open_store(self.location), unit_id, file).read()


def _named_files(manifest: dict[str, Any]) -> list[PublishedFile]:
    return [PublishedFile(**file) for file in manifest["files"]]


def _known_task(name: str, tasks: Sequence[Task]) -> Task:
    known = next((task for task in tasks if task.name == name), None)
    if known is None:
        raise ConfigError(
            f"model has no task {name!r}; its tasks: {', '.join(task.name for task in tasks)}; compare the "
            "config with that of its training"
        )
    return known


def _split(name: str, task: Task, table: pa.Table, actors: ScoringConfig) -> list[_Part]:
    """Return the rows of one task as units of UNIT_ROWS rows."""
    parts = []
    for first in range(0, len(table), UNIT_ROWS):
        rows = table.slice(first, UNIT_ROWS).select(ROW_SCHEMA.names)
        digest = _digest_of(rows, ["query", *task.ad_columns])
        identity = {"task": task.name, "name": name, "rows": digest, **_identity(actors)}
        parts.append(_Part(PredictionUnit(build_unit_id(task.name, identity), task.name, name), rows))
    return parts


def _identity(actors: ScoringConfig) -> dict[str, Any]:
    """Return what logits depend on besides model and rows, as far as the command knows it."""
    return {
        "prediction_version": PREDICTION_VERSION,
        "encoder_version": ENCODER_VERSION,
        "libraries": [version(name) for name in ("torch", "transformers")],
        "device": "cuda" if actors.use_gpu else "cpu",
        "batch_tokens": actors.batch_tokens,
    }


def _digest_of(rows: pa.Table, columns: Sequence[str]) -> str:
    """Return a digest of the ids of rows and of their texts in some columns."""
    return json_sha256([rows.column(name).to_pylist() for name in ("row_id", *columns)])
