"""What a report draws, beside scikit-learn's."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_curve

from pipeline.evaluation.curves import confusion, curve_charts, precision_recall, reliability, surest_errors
from pipeline.evaluation.metrics import calibration_figures
from pipeline.evaluation.svg_charts import standalone


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray]:
    """(probabilities with ties, whether positive)."""
    random = np.random.default_rng(3)
    positive_N = random.random(300) < 0.4
    return np.round(np.clip(0.3 * positive_N + random.random(300) * 0.7, 0, 1), 2), positive_N


def test_precision_over_recall_is_scikit_learn_s(scores: tuple[np.ndarray, np.ndarray]) -> None:
    recall, precision = precision_recall(*scores)
    theirs_precision, theirs_recall, _ = precision_recall_curve(scores[1], scores[0])
    kept = len(recall)
    np.testing.assert_allclose(recall[::-1], theirs_recall[:kept])
    np.testing.assert_allclose(precision[::-1], theirs_precision[:kept])


def test_the_gaps_of_the_reliability_curve_make_the_calibration_error(
    scores: tuple[np.ndarray, np.ndarray],
) -> None:
    said, seen = reliability(*scores)
    assert len(said) <= 10 and (np.diff(said) > 0).all()
    error = calibration_figures(*scores, np.ones((1, 300)))["calibration_error"][0]
    assert np.abs(said - seen).min() <= error <= np.abs(said - seen).max()


def test_rows_are_counted_by_true_and_said_label() -> None:
    label_N, said_N = np.asarray([0, 0, 2, 1, 2]), np.asarray([0, 1, 2, 1, 0])
    np.testing.assert_array_equal(confusion(label_N, said_N, 3), confusion_matrix(label_N, said_N))


def test_the_surest_errors_come_first_and_no_row_that_was_right() -> None:
    probability_N, positive_N = (
        np.asarray([0.9, 0.2, 0.6, 0.01, 0.7]),
        np.asarray([False, True, False, True, True]),
    )
    assert surest_errors(probability_N, positive_N, 3).tolist() == [3, 0, 1]
    assert surest_errors(probability_N, probability_N >= 0.5, 3).tolist() == []


def test_a_chart_as_a_file_of_its_own_is_xml(scores: tuple[np.ndarray, np.ndarray]) -> None:
    charts = curve_charts([("a < b & c", scores[0])], scores[1])
    assert set(charts) == {"relevant rows", "defects", "reliability"}
    for svg in charts.values():
        assert ElementTree.fromstring(standalone(svg)).tag == "{http://www.w3.org/2000/svg}svg"
