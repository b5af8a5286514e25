"""Rows apart: those set aside with their reasons, and the others for the pipeline to go on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import publish_dir, remove_tree
from pipeline.ray_map import map_in_order
from pipeline.reader import open_partition
from pipeline.schema import ROW_SCHEMA
from pipeline.writer import ROWS_PER_GROUP
from validation.partition import REASON_SCHEMA, PartitionVerdict, nullable, read_batches, repair_text

QUARANTINE_SCHEMA = pa.schema([pa.field("row", pa.int64()), pa.field("reasons", pa.list_(pa.string())), *nullable(ROW_SCHEMA)])


@dataclass(frozen=True)
class FileParting:
    """What parting the rows of one file needs; plain, so that it can travel to another machine."""

    path: Path
    verdict: PartitionVerdict
    repeated: dict[str, np.ndarray]
    quarantine_path: Path
    accepted_path: Path | None  # none where nothing is accepted


class PartedRows:
    """The rows of all files being parted, in the background, into those set aside and those that may go on. Nobody sees either before it is
    published; what never is, is gone when the context ends."""

    def __init__(self, partings: Sequence[FileParting], staged: Path) -> None:
        self._staged = staged
        self._background = ThreadPoolExecutor(1)
        self._counts = self._background.submit(lambda: list(map_in_order(part_rows, partings, threads=True)))

    def __enter__(self) -> PartedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._background.shutdown()
        remove_tree(self._staged)

    def counts(self) -> list[int]:
        """The number of accepted rows of each file, once all are parted."""
        return self._counts.result()

    def publish(self, part: str, folder: Path) -> None:
        """Put "quarantine" or "accepted" in the place of `folder`, whole."""
        self.counts()
        (self._staged / part).mkdir(parents=True, exist_ok=True)  # there may be no such row
        publish_dir(self._staged / part, folder)


def part_in_background(data_dir: Path, verdicts: Sequence[PartitionVerdict], repeated_F: Sequence[dict[str, np.ndarray]], staged: Path,
                       accept: bool) -> PartedRows:  # fmt: skip
    """Begin to write the rows set aside and, if asked to, the accepted ones below `staged`."""
    quarantine, accepted = staged / "quarantine", staged / "accepted" if accept else None
    return PartedRows([
        FileParting(data_dir / v.relative, v, repeated, quarantine / v.relative, accepted / v.relative if accepted else None)
        for v, repeated in zip(verdicts, repeated_F, strict=True)
    ], staged)  # fmt: skip


def part_rows(parting: FileParting) -> int:
    """The rows of one file with a reason into quarantine, the others into the accepted file: a copy where there is no reason. The number accepted."""
    verdict = parting.verdict
    if verdict.refused or not verdict.rows:
        return 0
    reasons = row_reasons(verdict, parting.repeated)
    num_accepted = verdict.rows - reasons.num_rows
    accepted_path = parting.accepted_path if num_accepted else None
    if accepted_path:
        accepted_path.parent.mkdir(parents=True, exist_ok=True)
    if reasons.num_rows:
        parting.quarantine_path.parent.mkdir(parents=True, exist_ok=True)
        separate(parting.path, reasons, parting.quarantine_path, accepted_path)
    elif accepted_path:
        shutil.copyfile(parting.path, accepted_path)
    return num_accepted


def row_reasons(verdict: PartitionVerdict, repeated: dict[str, np.ndarray]) -> pa.Table:
    """The rows of a file that are set aside, rising, and why each is: REASON_SCHEMA."""
    tables = [REASON_SCHEMA.empty_table()]
    if verdict.bad_rows:
        tables.append(pq.read_table(Path(verdict.folder) / "reasons.parquet", schema=REASON_SCHEMA))
    for reason, row_R in repeated.items():
        reasons = pa.ListArray.from_arrays(np.arange(len(row_R) + 1, dtype=np.int32), pa.array([reason]).take(np.zeros(len(row_R), dtype=np.int64)))
        tables.append(pa.table([pa.array(row_R), reasons], schema=REASON_SCHEMA))
    return pa.concat_tables(tables).sort_by("row")


def separate(path: Path, reasons: pa.Table, quarantine_path: Path, accepted_path: Path | None) -> None:
    """The rows of one file that `reasons` names into quarantine, the others into the accepted file."""
    row_R = reasons["row"].to_numpy()
    start = 0
    with open_partition(path) as file, open_writer(quarantine_path, QUARANTINE_SCHEMA) as bad, contextlib.ExitStack() as stack:
        good = stack.enter_context(open_writer(accepted_path, ROW_SCHEMA)) if accepted_path else None
        for table in read_batches(file, path):
            first, last = np.searchsorted(row_R, (start, start + table.num_rows)).tolist()
            keep_M = np.ones(table.num_rows, dtype=bool)
            if last > first:
                keep_M[row_R[first:last] - start] = False
                taken, _ = repair_text(table.filter(pa.array(~keep_M)))
                bad.write_table(pa.table([*reasons.slice(first, last - first).columns, *taken.columns], schema=QUARANTINE_SCHEMA))
            if good:
                accepted = table.filter(pa.array(keep_M)) if last > first else table
                good.write_table(pa.table(accepted.columns, schema=ROW_SCHEMA), row_group_size=ROWS_PER_GROUP)
            start += table.num_rows


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A parquet file to write as all files of the pipeline are written."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
