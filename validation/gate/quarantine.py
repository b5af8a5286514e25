"""Separation of the rows of checked files into accepted and quarantined rows."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.files import file_sha256, publish_dir, remove_tree, sync_tree, temporary_path
from pipeline.data.parallel_map import map_in_order
from pipeline.data.reader import read_rows
from pipeline.data.row_files import RowFile, copy_object, open_copy, open_in_place
from pipeline.data.writer import ROWS_PER_GROUP
from pipeline.schema import ROW_SCHEMA
from validation.gate.file_checks import FileVerdict, check_unchanged
from validation.gate.row_checks import REASON_SCHEMA, nullable, repair_text

QUARANTINE_SCHEMA = pa.schema(
    [pa.field("row", pa.int64()), pa.field("reasons", pa.list_(pa.string())), *nullable(ROW_SCHEMA)]
)


@dataclass(frozen=True)
class SplitJob:
    """Arguments of `split_file`, plain enough to be sent to another machine."""

    file: RowFile
    verdict: FileVerdict
    duplicates: dict[str, np.ndarray]  # row numbers by reason
    quarantine_path: Path
    accepted_path: Path | None  # None if nothing is accepted
    earlier_path: Path | None  # rows of the file that an earlier run accepted, if it did


class BackgroundSplit:
    """Context in which all files are split in a background thread.

    The rows are staged beside the folders that they will replace. `publish` makes a folder visible; what is
    not published is deleted when the context ends.

    Args:
        files: The files by name.
        verdicts: Verdict on each file.
        duplicates: For each file, rows to quarantine because of other rows: row numbers by reason.
        quarantine_dir: Folder for the quarantined rows.
        accepted_dir: Folder for the accepted rows; None if nothing is accepted.
    """

    def __init__(
        self,
        files: Mapping[str, RowFile],
        verdicts: Sequence[FileVerdict],
        duplicates: Sequence[dict[str, np.ndarray]],
        quarantine_dir: Path,
        accepted_dir: Path | None,
    ) -> None:
        quarantine = temporary_path(quarantine_dir)
        self._staged = {quarantine_dir: quarantine}
        if accepted_dir:
            self._staged[accepted_dir] = temporary_path(accepted_dir)
        accepted = self._staged[accepted_dir] if accepted_dir else None
        jobs = [
            SplitJob(
                files[verdict.relative],
                verdict,
                of_file,
                quarantine / verdict.relative,
                accepted / verdict.relative if accepted else None,
                accepted_dir / verdict.relative if accepted_dir else None,
            )
            for verdict, of_file in zip(verdicts, duplicates, strict=True)
        ]
        self._executor = ThreadPoolExecutor(1)
        self._cancelled = threading.Event()
        self._counts = self._executor.submit(self._split, jobs)

    def _split(self, jobs: Sequence[SplitJob]) -> list[int]:
        counts = []
        for count in map_in_order(split_file, jobs, use_threads=True):
            counts.append(count)
            if self._cancelled.is_set():
                break
        return counts

    def __enter__(self) -> BackgroundSplit:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._executor.shutdown()
        for staged in self._staged.values():
            remove_tree(staged)

    def accepted_counts(self) -> list[int]:
        """Wait for all files and return the number of accepted rows of each."""
        return self._counts.result()

    def publish(self, folder: Path) -> None:
        """Wait for all files and replace one of the two folders by its staged rows."""
        self.accepted_counts()
        self._staged[folder].mkdir(parents=True, exist_ok=True)  # missing if no row is for this folder
        sync_tree(self._staged[folder])
        publish_dir(self._staged[folder], folder)


def split_file(job: SplitJob) -> int:
    """Write the bad rows of one file to quarantine and the others to the accepted file.

    A file without bad rows is copied byte for byte; an object from the rows of an earlier run, if they are
    there.

    Returns:
        Number of accepted rows.

    Raises:
        RetryableError: The file changed since it was checked.
    """
    verdict = job.verdict
    if verdict.refused or not verdict.rows:
        return 0
    reasons = quarantine_reasons(verdict, job.duplicates)
    num_accepted = verdict.rows - reasons.num_rows
    accepted_path = job.accepted_path if num_accepted else None
    if accepted_path:
        accepted_path.parent.mkdir(parents=True, exist_ok=True)
    if reasons.num_rows:
        job.quarantine_path.parent.mkdir(parents=True, exist_ok=True)
        _write_both_parts(job, reasons, accepted_path)
    elif accepted_path:
        _copy_whole(job, accepted_path)
    check_unchanged(job.file, verdict.stamp)
    return num_accepted


def _copy_whole(job: SplitJob, accepted_path: Path) -> None:
    if not job.file.is_object:
        shutil.copyfile(job.file.path, accepted_path)
        return
    earlier, sha256 = job.earlier_path, job.verdict.sha256
    if earlier and earlier.is_file() and file_sha256(earlier) == sha256:
        shutil.copyfile(earlier, accepted_path)
        return
    with accepted_path.open("wb") as accepted:
        copy_object(job.file, accepted, sha256)


def quarantine_reasons(verdict: FileVerdict, duplicates: dict[str, np.ndarray]) -> pa.Table:
    """Return the rows of a file to quarantine and their reasons (REASON_SCHEMA), in ascending order."""
    tables = [REASON_SCHEMA.empty_table()]
    if verdict.bad_rows:
        tables.append(pq.read_table(Path(verdict.folder) / "reasons.parquet", schema=REASON_SCHEMA))
    for reason, rows in duplicates.items():
        offsets = np.arange(len(rows) + 1, dtype=np.int32)
        values = pa.array([reason]).take(np.zeros(len(rows), dtype=np.int64))
        reasons = pa.ListArray.from_arrays(offsets, values)
        tables.append(pa.table([pa.array(rows), reasons], schema=REASON_SCHEMA))
    return pa.concat_tables(tables).sort_by("row")


def accepted_rows(
    files: Mapping[str, RowFile], verdicts: Iterable[tuple[FileVerdict, dict[str, np.ndarray]]]
) -> Iterator[pa.Table]:
    """Yield the rows of checked files that are not quarantined, batch by batch.

    Args:
        files: The files by name.
        verdicts: Verdict on each file, and its duplicate rows by reason.
    """
    for verdict, duplicates in verdicts:
        if verdict.refused or not verdict.rows:
            continue
        bad_N = np.zeros(verdict.rows, dtype=bool)
        bad_N[quarantine_reasons(verdict, duplicates)["row"].to_numpy()] = True
        start, file = 0, files[verdict.relative]
        with open_in_place(file) as opened:
            for table in read_rows(opened, file.url, check_text=False):
                yield table.filter(pa.array(~bad_N[start : start + table.num_rows]))
                start += table.num_rows


def _write_both_parts(job: SplitJob, reasons: pa.Table, accepted_path: Path | None) -> None:
    """Write the rows of one file that `reasons` names to quarantine, the others to the accepted file."""
    quarantined_rows = reasons["row"].to_numpy()
    start = 0
    with (
        open_copy(job.file, job.verdict.sha256) as (opened, _),
        _open_writer(job.quarantine_path, QUARANTINE_SCHEMA) as quarantine,
        contextlib.ExitStack() as stack,
    ):
        accepted = stack.enter_context(_open_writer(accepted_path, ROW_SCHEMA)) if accepted_path else None
        for table in read_rows(opened, job.file.url, check_text=False):
            first, last = np.searchsorted(quarantined_rows, (start, start + table.num_rows)).tolist()
            keep_M = np.ones(table.num_rows, dtype=bool)
            if last > first:
                keep_M[quarantined_rows[first:last] - start] = False
                bad, _ = repair_text(table.filter(pa.array(~keep_M)))
                columns = [*reasons.slice(first, last - first).columns, *bad.columns]
                quarantine.write_table(pa.table(columns, schema=QUARANTINE_SCHEMA))
            if accepted:
                good = table.filter(pa.array(keep_M)) if last > first else table
                good = pa.table(good.columns, schema=ROW_SCHEMA)
                accepted.write_table(good, row_group_size=ROWS_PER_GROUP)
            start += table.num_rows


def _open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a parquet file with the pipeline's compression and checksums."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
