"""Time of the processor for the data gate's search for repeated ids and pairs.

    python -m tests.bench.support.repeat_search FOLDER ROWS

Writes made-up keys of files of a million rows, of which every thousandth repeats an earlier one, and searches
them.
The median of three searches of a million rows is taken; more rows are searched once.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from validation.gate.cross_file_checks import find_duplicates
from validation.gate.file_checks import KEY_SCHEMA, FileVerdict

FILE_ROWS = 1_000_000


def write_keys(folder: Path, num_rows: int) -> list[FileVerdict]:
    """Write the keys of all files, as the gate's file checks do."""
    random, verdicts = np.random.default_rng(0), []
    for number in range(num_rows // FILE_ROWS):
        path = folder / f"{number}"
        path.mkdir(parents=True)
        hashes = [random.integers(0, 2**64, FILE_ROWS, np.uint64) for _ in range(2)]
        for column in hashes:
            column[500::1_000] = column[0::1_000]
        labels = pa.array(random.integers(0, 2, FILE_ROWS), KEY_SCHEMA.field("label").type)
        table = pa.table([pa.array(column) for column in hashes] + [labels], KEY_SCHEMA.names)
        pq.write_table(table.cast(KEY_SCHEMA), path / "keys.parquet", compression="none")
        verdicts.append(FileVerdict(f"{number}", "task", "", str(path), rows=FILE_ROWS))
    return verdicts


def main() -> None:
    """Write, search and print."""
    folder, num_rows = Path(sys.argv[1]), int(sys.argv[2])
    verdicts, seconds = write_keys(folder, num_rows), []
    for _ in range(3 if num_rows == FILE_ROWS else 1):
        started_s = time.process_time()
        duplicates = find_duplicates(verdicts, "majority", folder)
        seconds.append(time.process_time() - started_s)
    found = sum(len(rows) for by_reason in duplicates.rows for rows in by_reason.values())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"search_s": round(statistics.median(seconds), 3), "found": found, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
