"""Memory of the rows of a training worker: opens encoded files, plans an epoch and reads random batches.

    python -m tests.bench.support.worker_memory FOLDER ROWS

Writes made-up encoded rows of about 60 tokens in blocks, then measures in another process.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

TASKS = ("one", "two")
BLOCK_ROWS = 50_000
NUM_BATCHES = 3_000  # of BATCH_ROWS
BATCH_ROWS = 64


def tasks() -> tuple[Any, ...]:
    """Return the tasks of the rows."""
    from pipeline.config.tasks import Task

    template = "{query} {ad_title}"
    return tuple(
        Task(name=name, labels=("bad", "good"), relevant_from=1, template=template) for name in TASKS
    )


def write_rows(folder: Path, num_rows: int) -> None:
    """Write the train split of all tasks, one block in memory at a time."""
    from pipeline.encoding.batches import ENCODED_SCHEMA
    from pipeline.encoding.encoded_dataset import EncodedWriter, encoded_file_name, write_manifest

    folder.mkdir()
    random = np.random.default_rng(0)
    for task in TASKS:
        with EncodedWriter(folder / encoded_file_name(task, "train")) as writer:
            for start in range(0, num_rows // len(TASKS), BLOCK_ROWS):
                length_N = random.integers(30, 91, BLOCK_ROWS)
                starts = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int32)
                tokens = random.integers(0, 49_152, starts[-1], dtype=np.int32)
                numbers = range(start, start + BLOCK_ROWS)
                columns = [
                    pa.array([f"{task}-{n:09d}" for n in numbers]),
                    pa.array([f"query number {n // 9}" for n in numbers]),
                    pa.ListArray.from_arrays(pa.array(starts), pa.array(tokens)),
                    pa.array(random.integers(0, 2, BLOCK_ROWS).astype(np.int32)),
                    pa.array(np.ones(BLOCK_ROWS, np.float32)),
                ]
                writer.write(pa.table(columns, schema=ENCODED_SCHEMA))
    write_manifest(folder)


def resident_mb() -> dict[str, float]:
    """Return the resident memory of this process: anonymous, and of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    values = {words[0]: float(words[1]) / 1024 for words in lines if words[0].startswith("Rss")}
    return {"anon_mb": values["RssAnon:"], "file_mb": values["RssFile:"]}


def measure(folder: Path) -> dict[str, float]:
    """Return the highest memory above that of the imports, of anonymous pages and of files."""
    from pipeline.encoding.batches import collate
    from pipeline.encoding.encoded_dataset import read_encoded
    from pipeline.training.sampler import Sampler, SamplerSettings

    before, peak, is_done = resident_mb(), resident_mb(), threading.Event()

    def watch() -> None:
        while not is_done.wait(0.005):
            for name, value in resident_mb().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    encoded = read_encoded(folder, "train", tasks())
    sampler = Sampler(encoded.length_N, encoded.task_N, [1.0] * len(TASKS), SamplerSettings(BATCH_ROWS, 1, 0))
    for step in range(NUM_BATCHES):
        collate(encoded, sampler.global_rows(step), len(TASKS), pad_id=0)
    is_done.set()
    watcher.join()
    lengths_mb = encoded.length_N.nbytes / 2**20
    used = {name: round(value - before[name]) for name, value in peak.items()}
    return used | {"lengths_mb": round(lengths_mb), "rows": len(encoded)}


def main() -> None:
    """Write the rows and measure; or, with the rows written, only measure."""
    folder = Path(sys.argv[1])
    if not folder.exists():
        write_rows(folder, int(sys.argv[2]))
        raise SystemExit(subprocess.run([sys.executable, "-m", __spec__.name, str(folder)]).returncode)
    print(json.dumps(measure(folder)))


if __name__ == "__main__":
    main()
