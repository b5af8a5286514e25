"""Figures of a task's rows under many weightings at once: the rows as they are, and each bootstrap draw.

Every function takes weights (D, N), one weighting a row, and gives one value a weighting (D,); NaN where it
is not defined. Shape legend: N rows, D weightings, G groups of equal scores, C labels, K bins, Q queries.
"""

import numpy as np

RECALLS = (0.5, 0.8, 0.9)  # at which precision is told

NUM_BINS = 10  # of equal mass, for the calibration error

NDCG_DEPTH = 10


def ranking_figures(
    score_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """roc_auc, pr_auc of the positive class, defect_pr_auc of the negative one (average precision, as
    scikit-learn's; ties count as one threshold), precision_at_recall_<r>: at the highest threshold whose
    recall is at least r.
    """
    order = np.argsort(-score_N, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))
    sorted_DN = weight_DN[:, order]
    hits_DN = np.cumsum(sorted_DN * positive_N[order], axis=1)
    misses_DG = (np.cumsum(sorted_DN, axis=1) - hits_DN)[:, last_of_tie]
    hits_DG = hits_DN[:, last_of_tie]
    hits_D, misses_D = hits_DG[:, -1:], misses_DG[:, -1:]
    new_hits_DG, new_misses_DG = (
        np.diff(hits_DG, axis=1, prepend=0.0),
        np.diff(misses_DG, axis=1, prepend=0.0),
    )
    precision_DG = ratio(hits_DG, hits_DG + misses_DG)
    # from the lowest score up, a group and all below it
    hits_below_DG, misses_below_DG = hits_D - hits_DG + new_hits_DG, misses_D - misses_DG + new_misses_DG
    defect_precision_DG = ratio(misses_below_DG, hits_below_DG + misses_below_DG)
    figures = {
        "roc_auc": ratio(
            (new_misses_DG * (hits_DG - new_hits_DG / 2)).sum(1), (hits_D * misses_D)[:, 0], np.nan
        ),
        "pr_auc": ratio((precision_DG * new_hits_DG).sum(1), hits_D[:, 0], np.nan),
        "defect_pr_auc": ratio((defect_precision_DG * new_misses_DG).sum(1), misses_D[:, 0], np.nan),
    }
    for recall in RECALLS:
        at_D = np.argmax(hits_DG >= recall * hits_D * (1 - 1e-12), axis=1)
        precision_D = np.take_along_axis(precision_DG, at_D[:, None], axis=1)[:, 0]
        figures[f"precision_at_recall_{recall}"] = np.where(hits_D[:, 0] > 0, precision_D, np.nan)
    return figures


def calibration_figures(
    probability_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """calibration_error over bins of equal mass, brier, log_loss of the probability of the positive class."""
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
    """The bin of each row (N,): as many rows in each as can be; rows of equal probability fall into one bin,
    so that their order is nothing.
    """
    _, group_N, count_G = np.unique(probability_N, return_inverse=True, return_counts=True)
    middle_G = np.cumsum(count_G) - count_G / 2
    return np.minimum((middle_G * NUM_BINS / max(1, len(probability_N))).astype(int), NUM_BINS - 1)[group_N]


def label_figures(
    decided_N: np.ndarray, label_N: np.ndarray, num_labels: int, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """f1_<label index> of each label, macro_f1 over the labels that are there or were decided,
    quadratic_kappa (Cohen's kappa with quadratic weights).
    """
    cell_NX = np.eye(num_labels * num_labels)[label_N * num_labels + decided_N]
    confusion_DCC = (weight_DN @ cell_NX).reshape(-1, num_labels, num_labels)  # true label by decided label
    true_DC, said_DC = confusion_DCC.sum(2), confusion_DCC.sum(1)
    f1_DC = ratio(2 * np.einsum("dcc->dc", confusion_DCC), true_DC + said_DC, np.nan)
    distance_CC = np.subtract.outer(np.arange(num_labels), np.arange(num_labels)) ** 2
    total_D = true_DC.sum(1)
    expected_D = np.einsum("dc,dk,ck->d", true_DC, said_DC, distance_CC)
    seen_D = np.einsum("dck,ck->d", confusion_DCC, distance_CC) * total_D
    with np.errstate(invalid="ignore"):
        macro_D = np.where(
            np.isfinite(f1_DC).any(1),
            np.nansum(f1_DC, axis=1) / np.maximum(np.isfinite(f1_DC).sum(1), 1),
            np.nan,
        )
    by_label = {f"f1_{index}": f1_DC[:, index] for index in range(num_labels)}
    return {**by_label, "macro_f1": macro_D, "quadratic_kappa": 1 - ratio(seen_D, expected_D, np.nan)}


def decision_figures(
    decision_N: np.ndarray, positive_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """defect_rate: the share of irrelevant rows among those decided relevant; decided_share of all rows; f1
    of a probability of one half is not here: decisions are those of the thresholds.
    """
    relevant_N = decision_N == "relevant"
    sums_D3 = weight_DN @ np.stack(
        [relevant_N & ~positive_N, relevant_N, decision_N != "abstain"], axis=1
    ).astype(np.float64)
    return {
        "defect_rate": ratio(sums_D3[:, 0], sums_D3[:, 1], np.nan),
        "decided_share": ratio(sums_D3[:, 2], weight_DN.sum(1), np.nan),
    }


def ndcg(
    grade_N: np.ndarray, label_N: np.ndarray, query_N: np.ndarray, weight_DN: np.ndarray
) -> dict[str, np.ndarray]:
    """ndcg_at_10: the mean over queries that have several rows, one of them better than another, of their
    nDCG, gains 2^label - 1 (Burges et al. 2005), rows ranked by `grade_N`; equal grades in the order of the
    rows.
    """
    _, first_Q, query_index_N = np.unique(query_N, return_index=True, return_inverse=True)

    def gains(by_N: np.ndarray) -> np.ndarray:
        order = np.lexsort((np.arange(len(by_N)), -by_N, query_index_N))
        starts = np.searchsorted(query_index_N[order], np.arange(len(first_Q)))
        rank_N = np.arange(len(order)) - starts[query_index_N[order]]
        kept = rank_N < NDCG_DEPTH
        gain = (2.0 ** label_N[order] - 1) / np.log2(rank_N + 2)
        return np.bincount(query_index_N[order][kept], gain[kept], minlength=len(first_Q))

    ideal_Q = gains(label_N.astype(np.float64))
    labels = np.stack([label_N, -label_N])
    most_least = np.full((2, len(first_Q)), -np.inf)
    for row in (0, 1):
        np.maximum.at(most_least[row], query_index_N, labels[row])
    counts_Q = most_least[0] + most_least[1] > 0
    value_Q = ratio(gains(grade_N), ideal_Q)
    weight_DQ = weight_DN[:, first_Q] * counts_Q
    return {"ndcg_at_10": ratio(weight_DQ @ value_Q, weight_DQ.sum(1), np.nan)}


def ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """above / below, `otherwise` where below is 0."""
    return np.divide(
        above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), otherwise), where=below > 0
    )
