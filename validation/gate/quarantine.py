"""Rows apart: those set aside with their reasons, and the others for the pipeline to go on with."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.parallel_map import map_in_order
from pipeline.data.reader import open_partition
from pipeline.data.writer import ROWS_PER_GROUP
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.filesystem import publish_dir, remove_tree, temporary_beside
from validation.gate.file_checks import PartitionVerdict, check_unchanged, read_batches
from validation.gate.row_checks import REASON_SCHEMA, nullable, repair_text

QUARANTINE_SCHEMA = pa.schema(
    [pa.field("row", pa.int64()), pa.field("reasons", pa.list_(pa.string())), *nullable(ROW_SCHEMA)]
)


@dataclass(frozen=True)
class FileParting:
    """What parting the rows of one file needs; plain, so that it can travel to another machine."""

    path: Path
    verdict: PartitionVerdict
    repeated: dict[str, np.ndarray]
    quarantine_path: Path
    accepted_path: Path | None  # none where nothing is accepted


class PartedRows:
    """The rows of all files being parted, in the background, into those set aside and those that may go on:
    each lot in a folder beside the one it is to replace. Nobody sees either before it is published; what
    never is, is gone when the context ends.
    """

    def __init__(
        self,
        data_dir: Path,
        verdicts: Sequence[PartitionVerdict],
        repeated_F: Sequence[dict[str, np.ndarray]],
        quarantine_dir: Path,
        accepted_dir: Path | None,
    ) -> None:
        self._staged = {
            folder: temporary_beside(folder) for folder in (quarantine_dir, accepted_dir) if folder
        }
        quarantine, accepted = (
            self._staged[quarantine_dir],
            self._staged[accepted_dir] if accepted_dir else None,
        )
        partings = [
            FileParting(
                data_dir / v.relative,
                v,
                repeated,
                quarantine / v.relative,
                accepted / v.relative if accepted else None,
            )
            for v, repeated in zip(verdicts, repeated_F, strict=True)
        ]
        self._background = ThreadPoolExecutor(1)
        self._given_up = threading.Event()
        self._counts = self._background.submit(self._part, partings)

    def _part(self, partings: Sequence[FileParting]) -> list[int]:
        counts = []
        for count in map_in_order(part_rows, partings, threads=True):
            counts.append(count)
            if self._given_up.is_set():
                break
        return counts

    def __enter__(self) -> PartedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._background.shutdown()
        for staged in self._staged.values():
            remove_tree(staged)

    def counts(self) -> list[int]:
        """The number of accepted rows of each file, once all are parted."""
        return self._counts.result()

    def publish(self, folder: Path) -> None:
        """Put the rows for one of the two folders in its place, whole."""
        self.counts()
        self._staged[folder].mkdir(parents=True, exist_ok=True)  # there may be no such row
        publish_dir(self._staged[folder], folder)


def part_rows(parting: FileParting) -> int:
    """The rows of one file with a reason into quarantine, the others into the accepted file: a copy where
    there is no reason. The number accepted.
    """
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
    check_unchanged(parting.path, verdict.stamp)
    return num_accepted


def row_reasons(verdict: PartitionVerdict, repeated: dict[str, np.ndarray]) -> pa.Table:
    """The rows of a file that are set aside, rising, and why each is: REASON_SCHEMA."""
    tables = [REASON_SCHEMA.empty_table()]
    if verdict.bad_rows:
        tables.append(pq.read_table(Path(verdict.folder) / "reasons.parquet", schema=REASON_SCHEMA))
    for reason, row_R in repeated.items():
        reasons = pa.ListArray.from_arrays(
            np.arange(len(row_R) + 1, dtype=np.int32),
            pa.array([reason]).take(np.zeros(len(row_R), dtype=np.int64)),
        )
        tables.append(pa.table([pa.array(row_R), reasons], schema=REASON_SCHEMA))
    return pa.concat_tables(tables).sort_by("row")


def separate(path: Path, reasons: pa.Table, quarantine_path: Path, accepted_path: Path | None) -> None:
    """The rows of one file that `reasons` names into quarantine, the others into the accepted file."""
    row_R = reasons["row"].to_numpy()
    start = 0
    with (
        open_partition(path) as file,
        open_writer(quarantine_path, QUARANTINE_SCHEMA) as bad,
        contextlib.ExitStack() as stack,
    ):
        good = stack.enter_context(open_writer(accepted_path, ROW_SCHEMA)) if accepted_path else None
        for table in read_batches(file, path):
            first, last = np.searchsorted(row_R, (start, start + table.num_rows)).tolist()
            keep_M = np.ones(table.num_rows, dtype=bool)
            if last > first:
                keep_M[row_R[first:last] - start] = False
                taken, _ = repair_text(table.filter(pa.array(~keep_M)))
                bad.write_table(
                    pa.table(
                        [*reasons.slice(first, last - first).columns, *taken.columns],
                        schema=QUARANTINE_SCHEMA,
                    )
                )
            if good:
                accepted = table.filter(pa.array(keep_M)) if last > first else table
                good.write_table(pa.table(accepted.columns, schema=ROW_SCHEMA), row_group_size=ROWS_PER_GROUP)
            start += table.num_rows


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A parquet file to write as all files of the pipeline are written."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
