"""Rows apart: those set aside with their reasons, and the others for the pipeline to go on with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files import publish_dir, remove_tree, temporary_beside
from pipeline.reader import open_partition
from pipeline.schema import ROW_SCHEMA
from pipeline.writer import ROWS_PER_GROUP
from validation.partition import PartitionVerdict, nullable, read_batches, repair_text

QUARANTINE_SCHEMA = pa.schema([pa.field("row", pa.int64()), pa.field("reasons", pa.list_(pa.string())), *nullable(ROW_SCHEMA)])


def set_aside(
    data_dir: Path,
    verdicts: Sequence[PartitionVerdict],
    repeated_F: Sequence[dict[str, np.ndarray]],
    quarantine_dir: Path,
    accepted_dir: Path | None,
) -> list[int]:
    """Write the rows set aside and, if asked to, the accepted ones; the number of accepted rows of each file. Both folders are whole or absent."""
    quarantine = temporary_beside(quarantine_dir)
    accepted = temporary_beside(accepted_dir) if accepted_dir else None
    counts = []
    try:
        quarantine.mkdir()
        for verdict, repeated in zip(verdicts, repeated_F, strict=True):
            reasons = row_reasons(verdict, repeated)
            counts.append(0 if verdict.refused else verdict.rows - len(reasons))
            if verdict.refused or not verdict.rows:
                continue
            target = accepted / verdict.relative if accepted else None
            separate(data_dir / verdict.relative, reasons, quarantine / verdict.relative, target if counts[-1] else None)
        publish_dir(quarantine, quarantine_dir)
        if accepted and accepted_dir:
            publish_dir(accepted, accepted_dir)
    finally:
        remove_tree(quarantine)
        if accepted:
            remove_tree(accepted)
    return counts


def row_reasons(verdict: PartitionVerdict, repeated: dict[str, np.ndarray]) -> dict[int, list[str]]:
    """Why each row of a file that is set aside is."""
    reasons: dict[int, list[str]] = {}
    if verdict.bad_rows:
        table = pq.read_table(Path(verdict.folder) / "reasons.parquet")
        reasons = dict(zip(table["row"].to_pylist(), table["reasons"].to_pylist(), strict=True))
    for reason, rows in repeated.items():
        reasons.update({row: [reason] for row in rows.tolist()})
    return reasons


def separate(path: Path, reasons: dict[int, list[str]], quarantine_path: Path, accepted_path: Path | None) -> None:
    """The rows of one file with a reason into quarantine, the others into the accepted file: a copy of `path` where there is no reason."""
    if accepted_path:
        accepted_path.parent.mkdir(parents=True, exist_ok=True)
    if not reasons:
        if accepted_path:
            shutil.copyfile(path, accepted_path)
        return
    quarantine_path.parent.mkdir(parents=True, exist_ok=True)
    aside_N = np.fromiter(sorted(reasons), np.int64, len(reasons))
    start = 0
    with open_partition(path) as file, pq.ParquetWriter(quarantine_path, QUARANTINE_SCHEMA, compression="zstd", write_page_checksum=True) as bad:
        good = pq.ParquetWriter(accepted_path, ROW_SCHEMA, compression="zstd", write_page_checksum=True) if accepted_path else None
        for table in read_batches(file, path):
            rows = aside_N[(aside_N >= start) & (aside_N < start + table.num_rows)]
            if len(rows):
                taken, _ = repair_text(table.take(rows - start))
                told_rows = pa.array([reasons[row] for row in rows.tolist()], pa.list_(pa.string()))
                bad.write_table(pa.table([pa.array(rows), told_rows, *taken.columns], schema=QUARANTINE_SCHEMA))
            if good:
                keep = pc.invert(pc.is_in(pa.array(np.arange(start, start + table.num_rows)), value_set=pa.array(rows)))
                good.write_table(pa.table(table.filter(keep).columns, schema=ROW_SCHEMA), row_group_size=ROWS_PER_GROUP)
            start += table.num_rows
        if good:
            good.close()
