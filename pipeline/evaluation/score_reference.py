"""Reference of a version: canary rows with their probabilities, and score profiles.

A scorer compares its canary probabilities before it publishes. Score drift compares profiles.

Shape legend: N rows, C labels of the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedInputError
from pipeline.inference.calibration import relevance_probability
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.probabilities import predict_multitask_probabilities, predict_probabilities
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.filesystem import read_json

CANARY_ROWS = 8  # of each task

PROBABILITY_BINS = 20  # from 0 to 1

FORMAT = 1

Profile = dict[str, dict[str, list[int]]]  # market -> "probability" and "labels" -> row counts


@dataclass(frozen=True)
class Canary:
    """Rows of one task and the relevance probabilities that the version computed for them."""

    table: pa.Table  # contract rows
    probability_N: np.ndarray


@dataclass(frozen=True)
class ScoreReference:
    """Content of score_reference.json."""

    bundle_sha256: str
    canaries: Mapping[str, Canary]  # by task
    profiles: Mapping[str, Profile]  # by task, of the test rows

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ScoreReference":
        """Parse the recorded form."""
        canaries = {
            task: Canary(pa.Table.from_pylist(canary["rows"], ROW_SCHEMA), np.asarray(canary["probability"]))
            for task, canary in fields["canaries"].items()
        }
        return cls(fields["bundle_sha256"], canaries, fields["profiles"])

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        canaries = {
            task: {"rows": canary.table.to_pylist(), "probability": canary.probability_N.tolist()}
            for task, canary in self.canaries.items()
        }
        return {
            "format": FORMAT,
            "bundle_sha256": self.bundle_sha256,
            "canaries": canaries,
            "profiles": dict(self.profiles),
        }


def build_reference(
    predictor: Predictor,
    bundle_sha256: str,
    tables: Mapping[str, pa.Table],
    probabilities: Mapping[str, np.ndarray],
    batch_tokens: int,
) -> ScoreReference:
    """Build the reference of a bundle.

    Canary rows are predicted again by themselves, as a scorer does: in bfloat16 a row's probability
    depends on the other rows of its batch.

    Args:
        predictor: The bundle's predictor.
        bundle_sha256: Digest of the bundle.
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
    return ScoreReference(bundle_sha256, canaries, profiles)


def read_reference(path: Path, bundle_sha256: str) -> ScoreReference:
    """Read the reference of a bundle.

    Raises:
        DamagedInputError: The file is not JSON, or belongs to another bundle.
    """
    fields = read_json(path)
    if fields.get("format") != FORMAT or fields.get("bundle_sha256") != bundle_sha256:
        raise DamagedInputError(
            f"{path} is not the reference of bundle {bundle_sha256[:12]}; register that bundle again"
        )
    return ScoreReference.from_json(fields)


def canary_difference(
    predictor: Predictor,
    reference: ScoreReference,
    batch_tokens: int,
    multitask: MultitaskPredictor | None = None,
) -> float:
    """Return the largest absolute difference of canary probabilities from the reference.

    `multitask` predicts in place of `predictor` if given.
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
