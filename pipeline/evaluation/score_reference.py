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
from pydantic import TypeAdapter

from models.serialization.bundle import REFERENCE, Bundle, BundleRefusedError, read_bundle
from pipeline.errors import WRONG_FIELDS, DamagedInputError, RelevanceError, summarize_error
from pipeline.inference.calibration import relevance_probability
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.probabilities import predict_multitask_probabilities, predict_probabilities
from pipeline.schema import ROW_SCHEMA

CANARY_ROWS = 8  # of each task

PROBABILITY_BINS = 20  # from 0 to 1

Profile = dict[str, dict[str, list[int]]]  # market -> "probability" and "labels" -> row counts


@dataclass(frozen=True)
class Canary:
    """Rows of one task and the relevance probabilities that the version computed for them."""

    table: pa.Table  # contract rows
    probability_N: np.ndarray

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Canary":
        """Parse the recorded form.

        Raises:
            ValueError: There is no row, or not one finite probability for each.
        """
        table = pa.Table.from_pylist(fields["rows"], ROW_SCHEMA)
        probability_N = np.asarray(fields["probability"], dtype=float)
        if not len(table) or probability_N.shape != (len(table),) or not np.isfinite(probability_N).all():
            raise ValueError("a canary needs rows, and a finite probability for each")
        return cls(table, probability_N)


@dataclass(frozen=True)
class ScoreReference:
    """Content of reference.json."""

    canaries: Mapping[str, Canary]  # by task
    profiles: Mapping[str, Profile]  # by task, of the test rows

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ScoreReference":
        """Parse the recorded form."""
        canaries = {task: Canary.from_json(canary) for task, canary in fields["canaries"].items()}
        return cls(canaries, TypeAdapter(dict[str, Profile]).validate_python(fields["profiles"]))

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        canaries = {
            task: {"rows": canary.table.to_pylist(), "probability": canary.probability_N.tolist()}
            for task, canary in self.canaries.items()
        }
        return {"canaries": canaries, "profiles": dict(self.profiles)}


def build_reference(
    predictor: Predictor,
    tables: Mapping[str, pa.Table],
    probabilities: Mapping[str, np.ndarray],
    batch_tokens: int,
) -> ScoreReference:
    """Build the reference of a bundle.

    Canary rows are predicted again by themselves, as a scorer does: in bfloat16 a row's probability
    depends on the other rows of its batch.

    Args:
        predictor: The bundle's predictor.
        tables: Contract rows by task.
        probabilities: Label probabilities (N, C) of these rows by task; tasks without any are left out.
        batch_tokens: Largest number of tokens of a forward pass, padding included.
    """
    canaries, profiles = {}, {}
    for task in predictor.tasks:
        if task.name not in probabilities:
            continue
        table, probability_NC = tables[task.name], probabilities[task.name]
        canary_rows = table.slice(0, CANARY_ROWS)
        canary_NC = predict_probabilities(predictor, canary_rows, task, batch_tokens)
        canaries[task.name] = Canary(canary_rows, relevance_probability(canary_NC, task))
        profiles[task.name] = build_profile(
            relevance_probability(probability_NC, task),
            probability_NC.argmax(axis=1),
            table.column("market").to_pylist(),
            len(task.labels),
        )
    return ScoreReference(canaries, profiles)


def read_reference(bundle_dir: Path, bundle_sha256: str) -> ScoreReference | None:
    """Read the reference in a bundle; None if it has none.

    Raises:
        DamagedInputError: The bundle is damaged, or another one.
    """
    try:
        return parse_reference(read_bundle(bundle_dir, bundle_sha256))
    except BundleRefusedError as error:
        raise DamagedInputError(str(error)) from error


def parse_reference(bundle: Bundle) -> ScoreReference | None:
    """Return the reference of a bundle; None if it has none.

    Raises:
        DamagedInputError: The reference is of another form.
    """
    if bundle.reference is None:
        return None
    try:
        return ScoreReference.from_json(bundle.reference)
    except WRONG_FIELDS as error:
        raise DamagedInputError(
            f"{bundle.folder / REFERENCE} is of another form ({summarize_error(error)}); evaluate and "
            "register its run again"
        ) from error


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
        bundle: The bundle; one without a reference has no canary rows.
        batch_tokens: Largest number of tokens of a forward pass, padding included.
        tolerance: Largest absolute difference of a probability.
        multitask: Predicts in place of `predictor` if given.

    Raises:
        RelevanceError: They differ by more than the tolerance, or are not finite.
    """
    reference = parse_reference(bundle)
    if reference is None:
        return
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
        canary = reference.canaries.get(task.name)
        if canary is None:
            continue
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
