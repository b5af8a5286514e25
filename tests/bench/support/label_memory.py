"""Peak memory of `iter_published` and of writing one file, with 200,000 and 2,000,000 made-up labels.

python -m tests.bench.support.label_memory
"""

import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring.label_store import publish_unit
from tests.support.score_partitions import score_table, unit_manifest

UNIT_ROWS = 50_000

STREAM = """
import resource, sys
from pathlib import Path
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring.published_labels import PublishedLabels
from pipeline.scoring.table_files import open_table_writer
place, out = map(Path, sys.argv[1:])
labels = PublishedLabels(place, scratch_dir=out.parent)
rows = 0
with open_table_writer(out, SCORE_SCHEMA) as write:
    for _, table in labels.batches():
        write(table.cast(SCORE_SCHEMA))
        rows += table.num_rows
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def publish(place: Path, num_labels: int) -> None:
    """Publish made-up labels, a twentieth of them with a row_id of an earlier unit."""
    values = score_table(1).drop_columns(["row_id", "probability", "input_hash"])
    draw = np.random.default_rng(17)
    for first in range(0, num_labels, UNIT_ROWS):
        ids = np.arange(first, first + UNIT_ROWS)
        ids[: UNIT_ROWS // 20] -= UNIT_ROWS // 2 if first else 0
        columns = {name: pa.repeat(values[name][0], UNIT_ROWS) for name in values.column_names}
        columns["row_id"] = pa.array([str(uuid.UUID(int=int(row_id) << 64)) for row_id in ids])
        columns["probability"] = pa.array(draw.random(UNIT_ROWS))
        columns["input_hash"] = pa.array([draw.bytes(16) for _ in ids], pa.binary(16))
        labels = pa.table({name: columns[name] for name in SCORE_SCHEMA.names}, schema=SCORE_SCHEMA)
        publish_unit(place, unit_manifest(f"u{first}"), labels)


def measure(num_labels: int) -> float:
    """Return the peak memory in MB of a process that writes all labels to a parquet file."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "scores"
        publish(place, num_labels)
        command = [sys.executable, "-c", STREAM, str(place), str(Path(folder) / "labels.parquet")]
        rows, peak_mb = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    num_repeated = (num_labels // UNIT_ROWS - 1) * (UNIT_ROWS // 20)
    assert int(rows) == num_labels - num_repeated, rows
    return float(peak_mb)


if __name__ == "__main__":
    small, large = measure(200_000), measure(2_000_000)
    print(
        json.dumps(
            {
                "labels_peak_mb_200k": round(small),
                "labels_peak_mb_2m": round(large),
                "labels_peak_mb_2m_over_200k": round(large / small, 3),
            }
        )
    )
