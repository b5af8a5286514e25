"""Metrics of a task's rows under many weightings at once: equal weights, and each bootstrap draw.

Every function takes weights (D, N), one weighting per row, and returns one value per weighting (D,) by name;
NaN where a metric is not defined. scikit-learn's metrics take one weighting per call.

Shape legend: N rows, D weightings, G groups of equal scores, C labels, K bins, Q queries.
"""

import numpy as np

RECALLS = (0.5, 0.8, 0.9)  # of precision at recall

NUM_BINS = 10  # of equal mass, for the calibration error

NDCG_DEPTH = 10


def ranking_metrics(
    score_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """Return roc_auc, pr_auc, defect_pr_auc and precision_at_recall_<r>.

    pr_auc is the average precision of the positive class, defect_pr_auc that of the negative class, as
    scikit-learn's `average_precision_score`: equal scores are one threshold. precision_at_recall_<r> is the
    precision at the highest threshold whose recall is at least r.
    """
    order = np.argsort(-score_N, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))
    sorted_DN = weight_DN[:, order]
    hits_DN = np.cumsum(sorted_DN * positive_N[order], axis=1)
    misses_DG = (np.cumsum(sorted_DN, axis=1) - hits_DN)[:, last_of_tie]
    hits_DG = hits_DN[:, last_of_tie]
    hits_D, misses_D = hits_DG[:, -1:], misses_DG[:, -1:]
    new_hits_DG = np.diff(hits_DG, axis=1, prepend=0.0)
    new_misses_DG = np.diff(misses_DG, axis=1, prepend=0.0)
    precision_DG = ratio(hits_DG, hits_DG + misses_DG)
    # sums over a group and all groups of lower scores
    hits_below_DG = hits_D - hits_DG + new_hits_DG
    misses_below_DG = misses_D - misses_DG + new_misses_DG
    defect_precision_DG = ratio(misses_below_DG, hits_below_DG + misses_below_DG)
    metrics = {
        "roc_auc": ratio(
            (new_misses_DG * (hits_DG - new_hits_DG / 2)).sum(1), (hits_D * misses_D)[:, 0], np.nan
        ),
        "pr_auc": ratio((precision_DG * new_hits_DG).sum(1), hits_D[:, 0], np.nan),
        "defect_pr_auc": ratio((defect_precision_DG * new_misses_DG).sum(1), misses_D[:, 0], np.nan),
    }
    for recall in RECALLS:
        at_D = np.argmax(hits_DG >= recall * hits_D * (1 - 1e-12), axis=1)
        precision_D = np.take_along_axis(precision_DG, at_D[:, None], axis=1)[:, 0]
        metrics[f"precision_at_recall_{recall}"] = np.where(hits_D[:, 0] > 0, precision_D, np.nan)
    return metrics


def calibration_metrics(
    probability_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """Return calibration_error over bins of equal mass, brier and log_loss of the positive class."""
    clipped_N = probability_N.clip(1e-7, 1 - 1e-7)
    losses_N2 = np.stack(
        [(probability_N - positive_N) ** 2, -np.where(positive_N, np.log(clipped_N), np.log1p(-clipped_N))],
        axis=1,
    )
    total_D = weight_DN.sum(1)
    sums_D2 = weight_DN @ losses_N2
    in_bin_NK = np.eye(NUM_BINS)[equal_mass_bins(probability_N)]
    gap_DK = weight_DN @ (in_bin_NK * (probability_N - positive_N)[:, None])
    return {
        "calibration_error": ratio(np.abs(gap_DK).sum(1), total_D, np.nan),
        "brier": ratio(sums_D2[:, 0], total_D, np.nan),
        "log_loss": ratio(sums_D2[:, 1], total_D, np.nan),
    }


def equal_mass_bins(probability_N: np.ndarray) -> np.ndarray:
    """Return the bin of each row (N,), with about as many rows in each bin.

    Rows of equal probability share a bin, so that the order of rows has no effect.
    """
    _, group_N, count_G = np.unique(probability_N, return_inverse=True, return_counts=True)
    middle_G = np.cumsum(count_G) - count_G / 2
    return np.minimum((middle_G * NUM_BINS / max(1, len(probability_N))).astype(int), NUM_BINS - 1)[group_N]


def label_metrics(
    predicted_N: np.ndarray, label_N: np.ndarray, num_labels: int, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """Return f1_<label index>, macro_f1 and quadratic_kappa (Cohen's kappa with quadratic weights).

    macro_f1 averages over the labels that occur or were predicted.
    """
    cell_NX = np.eye(num_labels * num_labels)[label_N * num_labels + predicted_N]
    confusion_DCC = (weight_DN @ cell_NX).reshape(-1, num_labels, num_labels)  # true label by predicted label
    true_DC, predicted_DC = confusion_DCC.sum(2), confusion_DCC.sum(1)
    f1_DC = ratio(2 * np.einsum("dcc->dc", confusion_DCC), true_DC + predicted_DC, np.nan)
    distance_CC = np.subtract.outer(np.arange(num_labels), np.arange(num_labels)) ** 2
    total_D = true_DC.sum(1)
    expected_D = np.einsum("dc,dk,ck->d", true_DC, predicted_DC, distance_CC)
    observed_D = np.einsum("dck,ck->d", confusion_DCC, distance_CC) * total_D
    with np.errstate(invalid="ignore"):
        macro_D = np.where(
            np.isfinite(f1_DC).any(1),
            np.nansum(f1_DC, axis=1) / np.maximum(np.isfinite(f1_DC).sum(1), 1),
            np.nan,
        )
    f1_by_label = {f"f1_{index}": f1_DC[:, index] for index in range(num_labels)}
    return {**f1_by_label, "macro_f1": macro_D, "quadratic_kappa": 1 - ratio(observed_D, expected_D, np.nan)}


def decision_metrics(
    decision_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """Return defect_rate, the share of irrelevant rows among those decided relevant, and decided_share."""
    relevant_N = decision_N == "relevant"
    counted_N3 = np.stack([relevant_N & ~positive_N, relevant_N, decision_N != "abstain"], axis=1)
    sums_D3 = weight_DN @ counted_N3.astype(np.float64)
    return {
        "defect_rate": ratio(sums_D3[:, 0], sums_D3[:, 1], np.nan),
        "decided_share": ratio(sums_D3[:, 2], weight_DN.sum(1), np.nan),
    }


def ndcg(
    grade_N: np.ndarray, label_N: np.ndarray, query_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """Return ndcg_at_10: the mean nDCG over queries whose rows have different labels.

    Gains are 2^label - 1 (Burges et al. 2005). Rows are ranked by `grade_N`, equal grades in row order.
    """
    _, first_Q, query_index_N = np.unique(query_N, return_index=True, return_inverse=True)

    def dcg(by_N: np.ndarray) -> np.ndarray:
        order = np.lexsort((np.arange(len(by_N)), -by_N, query_index_N))
        starts = np.searchsorted(query_index_N[order], np.arange(len(first_Q)))
        rank_N = np.arange(len(order)) - starts[query_index_N[order]]
        is_counted = rank_N < NDCG_DEPTH
        gain = (2.0 ** label_N[order] - 1) / np.log2(rank_N + 2)
        return np.bincount(query_index_N[order][is_counted], gain[is_counted], minlength=len(first_Q))

    ideal_Q = dcg(label_N.astype(np.float64))
    highest_Q, lowest_Q = np.full(len(first_Q), -np.inf), np.full(len(first_Q), np.inf)
    np.maximum.at(highest_Q, query_index_N, label_N)
    np.minimum.at(lowest_Q, query_index_N, label_N)
    is_counted_Q = highest_Q > lowest_Q
    value_Q = ratio(dcg(grade_N), ideal_Q)
    weight_DQ = weight_DN[:, first_Q] * is_counted_Q
    return {"ndcg_at_10": ratio(weight_DQ @ value_Q, weight_DQ.sum(1), np.nan)}


def ratio(numerator: np.ndarray, denominator: np.ndarray, default: float = 0.0) -> np.ndarray:
    """Return numerator / denominator, and `default` where the denominator is 0."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), default)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
