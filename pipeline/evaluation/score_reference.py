"""Reference of an evaluated bundle: canary rows with their probabilities, and score profiles.

It is a file of the bundle, so the bundle's digest covers it. A scorer compares its canary probabilities
before it publishes. Score drift compares profiles.

Shape legend: N rows, C labels of the task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from models.serialization.bundle import REFERENCE, Bundle
from pipeline.config.strict_model import StrictModel
from pipeline.config.tasks import Task
from pipeline.errors import (
    WRONG_FIELDS,
    DamagedInputError,
    RelevanceError,
    describe_first_problem,
    summarize_error,
)
from pipeline.inference.bundle_description import Count, read_described_bundle
from pipeline.inference.calibration import Probability, relevance_probability
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.probabilities import predict_multitask_probabilities, predict_probabilities
from pipeline.schema import COLUMNS, ROW_SCHEMA

CANARY_ROWS = 8  # of each task

PROBABILITY_BINS = 20  # from 0 to 1

Profile = dict[str, dict[str, list[int]]]  # market -> "probability" and "labels" -> row counts


class _CanaryFields(StrictModel):
    """Recorded form of a canary."""

    rows: list[dict[str, Any]] = Field(min_length=1)
    probability: list[Probability]


class _MarketFields(StrictModel):
    """Recorded profile of one market."""

    probability: list[Count] = Field(min_length=PROBABILITY_BINS, max_length=PROBABILITY_BINS)
    labels: list[Count]


class _ReferenceFields(StrictModel):
    """Recorded form of a reference."""

    canaries: dict[str, _CanaryFields]
    profiles: dict[str, dict[str, _MarketFields]]


@dataclass(frozen=True)
class Canary:
    """Rows and the relevance probabilities that the version computed for them by one task."""

    table: pa.Table  # contract rows
    probability_N: np.ndarray

    @classmethod
    def from_fields(cls, fields: _CanaryFields) -> "Canary":
        """Parse the recorded form.

        Raises:
            ValueError: A row is none of the contract, or has no probability.
        """
        table = pa.Table.from_pylist(fields.rows, ROW_SCHEMA)
        if len(fields.probability) != len(table):
            raise ValueError(f"{len(table)} canary rows have {len(fields.probability)} probabilities")
        absent = [c.name for c in COLUMNS if not c.nullable and table.column(c.name).null_count]
        if absent:
            raise ValueError(f"a canary row has no {', '.join(absent)}")
        return cls(table, np.asarray(fields.probability))


@dataclass(frozen=True)
class ScoreReference:
    """Content of reference.json."""

    canaries: Mapping[str, Canary]  # by task
    profiles: Mapping[str, Profile]  # by task, of the test rows; a task without any has none

    @classmethod
    def from_json(cls, value: Mapping[str, Any], tasks: Sequence[Task]) -> "ScoreReference":
        """Parse the recorded form.

        Args:
            value: Content of reference.json.
            tasks: Tasks of the bundle.

        Raises:
            ValueError: It is of another form, or its canaries are not for these tasks.
        """
        fields = _ReferenceFields.from_recorded(value)
        num_labels = {task.name: len(task.labels) for task in tasks}
        if fields.canaries.keys() != num_labels.keys() or not fields.profiles.keys() <= num_labels.keys():
            raise ValueError(
                f"canaries are for {', '.join(fields.canaries) or 'no task'}, profiles for "
                f"{', '.join(fields.profiles) or 'no task'}, tasks are {', '.join(num_labels)}"
            )
        for task, markets in fields.profiles.items():
            for market in markets.values():
                if len(market.labels) != num_labels[task] or sum(market.labels) != sum(market.probability):
                    raise ValueError(f"profile of task {task} counts other rows by label than by probability")
        canaries = {task: Canary.from_fields(canary) for task, canary in fields.canaries.items()}
        return cls(canaries, fields.model_dump(include={"profiles"})["profiles"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        canaries = {
            task: {"rows": canary.table.to_pylist(), "probability": canary.probability_N.tolist()}
            for task, canary in self.canaries.items()
        }
        return {"canaries": canaries, "profiles": dict(self.profiles)}


@dataclass(frozen=True)
class PredictedRows:
    """Contract rows of a task and their calibrated label probabilities (N, C)."""

    table: pa.Table
    probability_NC: np.ndarray


def canary_tables(tasks: Sequence[Task], tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Return the canary rows of each task, those of another task if it has no rows itself.

    They compare computations. They are to be predicted by themselves, on the device and in the precision of
    the scorer that checks them: in bfloat16 a row's probability depends on the other rows of its batch.

    Args:
        tasks: Tasks of the bundle.
        tables: Contract rows by task; at least one task has some.
    """
    any_table = next(iter(tables.values()))
    return {task.name: tables.get(task.name, any_table).slice(0, CANARY_ROWS) for task in tasks}


def build_reference(
    tasks: Sequence[Task], canaries: Mapping[str, PredictedRows], rows: Mapping[str, PredictedRows]
) -> ScoreReference:
    """Build the reference of a bundle.

    Args:
        tasks: Tasks of the bundle.
        canaries: Rows of `canary_tables` by task.
        rows: Rows for the profiles by task; tasks without any are left out.
    """
    recorded, profiles = {}, {}
    for task in tasks:
        canary = canaries[task.name]
        recorded[task.name] = Canary(canary.table, relevance_probability(canary.probability_NC, task))
        if task.name in rows:
            probability_NC = rows[task.name].probability_NC
            profiles[task.name] = build_profile(
                relevance_probability(probability_NC, task),
                probability_NC.argmax(axis=1),
                rows[task.name].table.column("market").to_pylist(),
                len(task.labels),
            )
    return ScoreReference(recorded, profiles)


def read_reference(bundle_dir: Path, bundle_sha256: str) -> ScoreReference:
    """Read the reference in an evaluated bundle.

    Raises:
        DamagedInputError: The bundle is damaged, another one, or not evaluated.
    """
    bundle, description = read_described_bundle(bundle_dir, bundle_sha256)
    return parse_reference(bundle, description.tasks)


def parse_reference(bundle: Bundle, tasks: Sequence[Task]) -> ScoreReference:
    """Return the reference of an evaluated bundle with these tasks.

    Raises:
        DamagedInputError: The bundle has none, or it is of another form or for other tasks.
    """
    path, remedy = bundle.folder / REFERENCE, "evaluate and register its run again"
    if bundle.reference is None:
        raise DamagedInputError(f"{path} missing, so nothing tells whether it computes the same; {remedy}")
    try:
        return ScoreReference.from_json(bundle.reference, tasks)
    except ValidationError as error:
        problem = describe_first_problem(error)
    except WRONG_FIELDS as error:
        problem = summarize_error(error)
    raise DamagedInputError(f"{path} is of another form ({problem}); {remedy}")


def check_canaries(
    predictor: Predictor,
    bundle: Bundle,
    batch_tokens: int,
    tolerance: float,
    multitask: MultitaskPredictor | None = None,
) -> None:
    """Check that the canary rows of a loaded bundle have their recorded probabilities here.

    Args:
        predictor: The bundle's predictor.
        bundle: The bundle.
        batch_tokens: Largest number of tokens of a forward pass, padding included.
        tolerance: Largest absolute difference of a probability.
        multitask: Predicts in place of `predictor` if given.

    Raises:
        DamagedInputError: The bundle has no canary rows, or damaged ones.
        RelevanceError: They differ by more than the tolerance, or are not finite.
    """
    reference = parse_reference(bundle, predictor.tasks)
    difference = canary_difference(predictor, reference, batch_tokens, multitask)
    if not difference <= tolerance:
        amount = f"by up to {difference:.4f}" if math.isfinite(difference) else "without bound"
        raise RelevanceError(
            f"canary probabilities differ from those of the version's evaluation {amount}, more than "
            f"scoring.canary_tolerance {tolerance}; compare software and hardware of both machines"
        )


def canary_difference(
    predictor: Predictor,
    reference: ScoreReference,
    batch_tokens: int,
    multitask: MultitaskPredictor | None = None,
) -> float:
    """Return the largest absolute difference of canary probabilities from the reference.

    It is infinite if a probability is not finite. `multitask` predicts in place of `predictor` if given.
    """
    largest = 0.0
    for task in predictor.tasks:
        canary = reference.canaries[task.name]
        if multitask is None:
            probability_NC = predict_probabilities(predictor, canary.table, task, batch_tokens)
        else:
            probability_NC = predict_multitask_probabilities(multitask, canary.table, batch_tokens)[task.name]
        difference_N = np.abs(relevance_probability(probability_NC, task) - canary.probability_N)
        if not np.isfinite(difference_N).all():
            return math.inf  # not NaN, which `max` and `>` ignore
        largest = max(largest, float(difference_N.max()))
    return largest


def build_profile(
    probability_N: np.ndarray, label_N: np.ndarray, markets: Sequence[str | None], num_labels: int
) -> Profile:
    """Count rows by probability bin and by label, market by market."""
    market_N = np.array([market or "" for market in markets], dtype=object)
    profile: Profile = {}
    for market in sorted(set(market_N.tolist())):
        in_market = market_N == market
        bin_N = np.minimum((probability_N[in_market] * PROBABILITY_BINS).astype(int), PROBABILITY_BINS - 1)
        profile[market] = {
            "probability": np.bincount(bin_N, minlength=PROBABILITY_BINS).tolist(),
            "labels": np.bincount(label_N[in_market], minlength=num_labels).tolist(),
        }
    return profile


def add_profile(total: Profile, other: Mapping[str, Mapping[str, list[int]]]) -> None:
    """Add the counts of one profile to another in place."""
    for market, counts in other.items():
        sums = total.setdefault(market, {name: [0] * len(values) for name, values in counts.items()})
        for name, values in counts.items():
            sums[name] = [a + b for a, b in zip(sums[name], values, strict=True)]
