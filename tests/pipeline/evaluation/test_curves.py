"""Curves equal those of scikit-learn."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_curve

from pipeline.evaluation.curves import (
    confusion,
    curve_charts,
    most_confident_errors,
    precision_recall,
    reliability,
)
from pipeline.evaluation.metrics import calibration_metrics


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and labels."""
    random = np.random.default_rng(3)
    positive_N = random.random(300) < 0.4
    return np.round(np.clip(0.3 * positive_N + random.random(300) * 0.7, 0, 1), 2), positive_N


def test_precision_recall_equals_scikit_learn(scores: tuple[np.ndarray, np.ndarray]) -> None:
    recall, precision = precision_recall(*scores)
    theirs_precision, theirs_recall, _ = precision_recall_curve(scores[1], scores[0])
    kept = len(recall)
    np.testing.assert_allclose(recall[::-1], theirs_recall[:kept])
    np.testing.assert_allclose(precision[::-1], theirs_precision[:kept])


def test_calibration_error_lies_within_the_reliability_gaps(
    scores: tuple[np.ndarray, np.ndarray],
) -> None:
    predicted, observed = reliability(*scores)
    assert len(predicted) <= 10 and (np.diff(predicted) > 0).all()
    error = calibration_metrics(*scores, np.ones((1, 300)))["calibration_error"][0]
    assert np.abs(predicted - observed).min() <= error <= np.abs(predicted - observed).max()


def test_confusion_equals_scikit_learn() -> None:
    label_N, predicted_N = np.asarray([0, 0, 2, 1, 2]), np.asarray([0, 1, 2, 1, 0])
    np.testing.assert_array_equal(confusion(label_N, predicted_N, 3), confusion_matrix(label_N, predicted_N))


def test_confident_errors_come_first_without_correct_rows() -> None:
    probability_N, positive_N = (
        np.asarray([0.9, 0.2, 0.6, 0.01, 0.7]),
        np.asarray([False, True, False, True, True]),
    )
    assert most_confident_errors(probability_N, positive_N, 3).tolist() == [3, 0, 1]
    assert most_confident_errors(probability_N, probability_N >= 0.5, 3).tolist() == []


def test_curve_charts_are_svg_documents(scores: tuple[np.ndarray, np.ndarray]) -> None:
    charts = curve_charts([("a < b & c", scores[0])], scores[1])
    assert set(charts) == {"relevant rows", "defects", "reliability"}
    for svg in charts.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
