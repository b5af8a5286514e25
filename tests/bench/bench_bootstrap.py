"""What an interval costs: `python -m tests.bench.bench_bootstrap [--rows N]`. Made-up scores of a task with
three labels and ten rows a query.

Ours: every figure of an evaluation, 1,000 draws of the queries. The other side: a loop over draws with
scikit-learn's roc_auc_score, average_precision_score, brier_score_loss and log_loss alone, on fewer draws and
multiplied up. The last line of stdout is one json object.
"""

import argparse
import json
import time

import numpy as np

from pipeline.config.tasks import Task
from pipeline.evaluation.bootstrap import NUM_DRAWS
from pipeline.evaluation.task_metrics import Said, Truth, measured

LOOPED_DRAWS = 20
ROUNDS = 3


def made_up(num_rows: int) -> tuple[Truth, Said]:
    """Labels that scores know a little of."""
    random = np.random.default_rng(0)
    label_N = random.integers(0, 3, num_rows)
    logits_NC = random.normal(size=(num_rows, 3)) + np.eye(3)[label_N]
    probability_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    probability_N = probability_NC[:, 1:].sum(axis=1)
    task = Task(
        name="made-up", labels=("bad", "fair", "good"), relevant_from=1, template="{query} {ad_title}"
    )
    query_N = np.arange(num_rows) // 10
    return Truth(task, query_N, label_N, {}), Said(
        probability_N, probability_NC, np.where(probability_N > 0.8, "relevant", "abstain")
    )


def looped(truth: Truth, said: Said) -> None:
    """scikit-learn on rows drawn query by query, `LOOPED_DRAWS` times."""
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    random, positive_N = np.random.default_rng(0), truth.positive_N
    num_queries = int(truth.query_N.max()) + 1
    for _ in range(LOOPED_DRAWS):
        weight_N = np.bincount(random.integers(0, num_queries, num_queries), minlength=num_queries)[
            truth.query_N
        ]
        for figure in (roc_auc_score, average_precision_score, brier_score_loss, log_loss):
            figure(positive_N, said.probability_N, sample_weight=weight_N)


def main() -> None:
    """Both sides in turn; medians."""
    parser = argparse.ArgumentParser(description="What an interval costs")
    parser.add_argument("--rows", type=int, default=100_000)
    truth, said = made_up(parser.parse_args().rows)
    ours_s, theirs_s = [], []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        figures, _ = measured(truth, said, 0)
        ours_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        looped(truth, said)
        theirs_s.append((time.perf_counter() - started_s) * NUM_DRAWS / LOOPED_DRAWS)
    ours, theirs = float(np.median(ours_s)), float(np.median(theirs_s))
    print(
        f"{len(figures)} figures, {len(truth.label_N):,} rows, {NUM_DRAWS:,} draws: {ours:.1f} s; "
        f"scikit-learn, 4 figures: {theirs:.1f} s"
    )
    print(
        json.dumps(
            {"bootstrap_seconds": round(ours, 2), "speed_over_scikit_learn_loop": round(theirs / ours, 2)}
        )
    )


if __name__ == "__main__":
    main()
