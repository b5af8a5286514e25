"""Cost of bootstrap intervals.

    python -m tests.bench.bench_bootstrap [--rows N]

Synthetic scores of a task with three labels and ten rows per query. Ours: every metric of an evaluation,
1,000 draws of the queries. The other side: a loop over draws with scikit-learn's roc_auc_score,
average_precision_score, brier_score_loss and log_loss, with fewer draws, extrapolated. The last line of
stdout is one JSON object.
"""

import argparse
import json
import time

import numpy as np

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import NUM_DRAWS
from pipeline.evaluation.task_metrics import LabeledRows, Predictions, metrics_with_intervals

LOOPED_DRAWS = 20
ROUNDS = 3


def synthetic_predictions(num_rows: int) -> tuple[LabeledRows, Predictions]:
    """Return labels, and predictions that follow them with noise."""
    random = np.random.default_rng(0)
    label_N = random.integers(0, 3, num_rows)
    logits_NC = random.normal(size=(num_rows, 3)) + np.eye(3)[label_N]
    probability_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    probability_N = probability_NC[:, 1:].sum(axis=1)
    task = Task(
        name="made-up", labels=("bad", "fair", "good"), relevant_from=1, template="{query} {ad_title}"
    )
    query_N = np.arange(num_rows) // 10
    return LabeledRows(task, query_N, label_N, {}), Predictions(
        probability_N, probability_NC, np.where(probability_N > 0.8, "relevant", "abstain")
    )


def loop_over_draws(rows: LabeledRows, predictions: Predictions) -> None:
    """Compute scikit-learn's metrics on LOOPED_DRAWS draws of the queries."""
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    random, is_relevant_N = np.random.default_rng(0), rows.is_relevant_N
    num_queries = int(rows.query_N.max()) + 1
    for _ in range(LOOPED_DRAWS):
        drawn = random.integers(0, num_queries, num_queries)
        weight_N = np.bincount(drawn, minlength=num_queries)[rows.query_N]
        for metric in (roc_auc_score, average_precision_score, brier_score_loss, log_loss):
            metric(is_relevant_N, predictions.probability_N, sample_weight=weight_N)


def main() -> None:
    """Measure both sides in turn and print medians."""
    parser = argparse.ArgumentParser(description="Cost of bootstrap intervals")
    parser.add_argument("--rows", type=int, default=100_000)
    rows, predictions = synthetic_predictions(parser.parse_args().rows)
    ours_s, theirs_s = [], []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        metrics, _ = metrics_with_intervals(rows, predictions, 0)
        ours_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        loop_over_draws(rows, predictions)
        theirs_s.append((time.perf_counter() - started_s) * NUM_DRAWS / LOOPED_DRAWS)
    ours, theirs = float(np.median(ours_s)), float(np.median(theirs_s))
    print(
        f"{len(metrics)} metrics, {len(rows.label_N):,} rows, {NUM_DRAWS:,} draws: {ours:.1f} s; "
        f"scikit-learn, 4 metrics: {theirs:.1f} s"
    )
    print(
        json.dumps(
            {"bootstrap_seconds": round(ours, 2), "speed_over_scikit_learn_loop": round(theirs / ours, 2)}
        )
    )


if __name__ == "__main__":
    main()
