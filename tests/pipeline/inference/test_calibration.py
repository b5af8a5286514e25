"""Decisions and their basis."""

import numpy as np
import pytest

from pipeline.config.tasks import Task
from pipeline.inference.calibration import (
    Calibration,
    Thresholds,
    calibrated_probabilities,
    decide,
    label_probabilities,
    recalibrate,
    relevance_probability,
)

PROBABILITIES = np.array([0.1, 0.4, 0.5, 0.6, 0.9])


def decisions(calibration: Calibration, when_unproven: str) -> list[tuple[str, str]]:
    found = decide(PROBABILITIES, calibration, None, when_unproven)  # type: ignore[arg-type]
    return list(zip(found.decision_N.tolist(), found.basis_N.tolist(), strict=True))


def test_proven_thresholds_decide_alone() -> None:
    calibration = Calibration(relevant_at=0.8, irrelevant_below=0.3)
    expected = [
        ("irrelevant", "target_precision"),
        ("abstain", "target_precision"),
        ("abstain", "target_precision"),
        ("abstain", "target_precision"),
        ("relevant", "target_precision"),
    ]
    assert decisions(calibration, "abstain") == decisions(calibration, "best_guess") == expected


def test_unproven_sides_abstain_by_default() -> None:
    assert decisions(Calibration(), "abstain") == [("abstain", "unproven")] * 5


def test_best_guess_takes_the_more_probable_decision() -> None:
    guesses = ["irrelevant", "irrelevant", "relevant", "relevant", "relevant"]
    assert decisions(Calibration(), "best_guess") == [(guess, "best_guess") for guess in guesses]


def test_best_guess_leaves_the_proven_side_alone() -> None:
    assert decisions(Calibration(relevant_at=0.8), "best_guess") == [
        ("irrelevant", "best_guess"),
        ("irrelevant", "best_guess"),
        ("abstain", "target_precision"),
        ("abstain", "target_precision"),
        ("relevant", "target_precision"),
    ]


def test_relevant_thresholds_below_one_half_are_kept() -> None:
    found = decisions(Calibration(relevant_at=0.3), "best_guess")
    assert found[0] == ("irrelevant", "best_guess") and found[1] == ("relevant", "target_precision")


@pytest.mark.parametrize("when_unproven", ["abstain", "best_guess"])
def test_markets_have_thresholds_of_their_own(when_unproven: str) -> None:
    calibration = Calibration(markets={"us": Thresholds(relevant_at=0.5, irrelevant_below=0.5)})
    found = decide(np.array([0.6, 0.6]), calibration, ["us", "de"], when_unproven)  # type: ignore[arg-type]
    assert (found.decision_N[0], found.basis_N[0]) == ("relevant", "target_precision")
    assert found.basis_N[1] == ("best_guess" if when_unproven == "best_guess" else "unproven")


RECALIBRATIONS = {
    "curve": Calibration(method="isotonic", curve=((0.0, 0.1), (0.5, 0.5), (1.0, 0.9))),
    "one knot": Calibration(method="isotonic", curve=((0.5, 0.3),)),
    "always relevant": Calibration(method="isotonic", curve=((0.0, 1.0),)),
    "never relevant": Calibration(method="isotonic", curve=((0.0, 0.0), (1.0, 0.0))),
    "shift": Calibration(method="platt", slope=0.5, intercept=3.0),
    "far shift": Calibration(method="platt", intercept=800.0),
}


@pytest.mark.parametrize("calibration", RECALIBRATIONS.values(), ids=RECALIBRATIONS.keys())
def test_logits_of_any_distance_are_recalibrated(calibration: Calibration) -> None:
    task = Task(name="t", labels=("a", "b", "c"), relevant_from=1, template="{query} {ad_title}")
    gaps = [0.0, 1.0, 30.0, 700.0, 743.0, 800.0, 1e30]
    logits_NC = np.array([[sign * gap, 1.0, 0.0] for gap in gaps for sign in (1, -1)])
    found_NC = calibrated_probabilities(logits_NC, calibration, task)
    before_N = relevance_probability(label_probabilities(logits_NC, 1.0), task)
    np.testing.assert_allclose(found_NC.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found_NC[:, 1:].sum(axis=1), recalibrate(before_N, calibration), rtol=1e-12)
    relevant_NC = found_NC[found_NC[:, 1] > 0, 1:]
    np.testing.assert_allclose(relevant_NC[:, 0] / relevant_NC[:, 1], np.e, rtol=1e-9)
