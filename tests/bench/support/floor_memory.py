"""Peak memory of the lexical floor of one task.

    python -m tests.bench.support.floor_memory ROWS

ROWS made-up train rows, a tenth as many test rows, the default `baseline.max_rows_per_task`. The last line
of stdout is one JSON object.
"""

import json
import resource
import sys
import time

import numpy as np
import pyarrow as pa

from pipeline.config.run import BaselineConfig
from pipeline.config.tasks import Task
from pipeline.evaluation.lexical_baseline import draw_train_rows, lexical_probability
from pipeline.schema import ROW_SCHEMA

ROWS_PER_QUERY = 10
TASK = Task(
    name="made-up", labels=("bad", "good"), relevant_from=1, template="{query} {ad_title} {ad_description}"
)


def made_up_rows(num_rows: int, seed: int) -> pa.Table:
    """Return rows of 3 words a query, 10 a title, 25 a description; relevant titles often hold the query."""
    random = np.random.default_rng(seed)
    words = np.array([f"{'bcdfghjklmnpqrst'[i % 16]}a{i:x}" for i in range(20_000)], dtype=object)

    def texts(num_texts: int, num_words: int) -> np.ndarray:
        numbers = (len(words) * random.random((num_texts, num_words)) ** 3).astype(
            int
        )  # some words are common
        return np.array([" ".join(row) for row in words[numbers]], dtype=object)

    queries = texts(num_rows // ROWS_PER_QUERY, 3)[np.arange(num_rows) // ROWS_PER_QUERY]
    label_N = random.integers(0, 2, num_rows)
    titles = texts(num_rows, 10)
    columns = {
        "row_id": np.char.add(f"{seed}-", np.arange(num_rows).astype(str)),
        "query": queries,
        "ad_title": np.where(label_N > random.random(num_rows) / 2, queries + " " + titles, titles),
        "ad_description": texts(num_rows, 25),
        "market": np.full(num_rows, "us"),
        "label": label_N,
    }
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(num_rows, field.type)
            for field in ROW_SCHEMA
        }
    )


def peak_mb() -> float:
    """Return the largest resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Make rows, fit and predict the floor, and print its time and peak."""
    num_rows = int(sys.argv[1])
    train, test = (
        pa.concat_tables(
            [made_up_rows(min(100_000, count), seed + part) for part in range(-(-count // 100_000))]
        )
        for count, seed in ((num_rows, 0), (num_rows // 10, 1_000))
    )
    before_mb, started_s = peak_mb(), time.perf_counter()
    drawn = draw_train_rows(train, BaselineConfig().max_rows_per_task)
    probability_N = lexical_probability(TASK, drawn, test, 0)
    relevant_N = test["label"].to_numpy() > 0
    measured = {
        "rows": train.num_rows,
        "drawn_rows": drawn.num_rows,
        "test_rows": test.num_rows,
        "seconds": round(time.perf_counter() - started_s),
        "peak_mb_before": round(before_mb),
        "peak_mb": round(peak_mb()),
        "lead": round(float(probability_N[relevant_N].mean() - probability_N[~relevant_N].mean()), 3),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
