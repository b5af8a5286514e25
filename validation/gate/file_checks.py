"""One parquet file against the row contract, in a stream: which rows are bad and why, and what other files
must be compared with.

Shape legend: N rows of the file, M rows of a batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import file_sha256
from pipeline import schema
from pipeline.config.extensions import DATA_CHECKS, load_installed_extensions
from pipeline.config.tasks import Task
from pipeline.data.reader import naming_damage, open_partition
from pipeline.errors import DamagedInputError, RetryableError
from pipeline.schema import COLUMNS, ROW_SCHEMA, schema_difference
from pipeline.storage.filesystem import json_sha256, read_json, remove_tree, temporary_beside, write_json
from validation.gate import row_checks
from validation.gate.row_checks import KEY_SCHEMA, REASON_SCHEMA, RowScan
from validation.text import hashing, scripts, text_bytes

BATCH_ROWS = 65_536

BATCH_BYTES = 128 * 2**20  # of texts as they lie in the file, before compression


@dataclass(frozen=True)
class PartitionJob:
    """What judging one file needs; plain, so that it can travel to another machine."""

    path: Path
    relative: str  # to the data folder
    task: Task
    judged: bool  # whether each row must carry a label
    work_dir: Path
    scripts: tuple[str, ...] = ()  # that its texts are expected in; none: any


@dataclass(frozen=True)
class PartitionVerdict:
    """What one file holds. `folder` keeps keys.parquet, reasons.parquet and sample.parquet of it."""

    relative: str
    task: str
    sha256: str
    folder: str
    rows: int = 0
    bad_rows: int = 0
    refused: str = ""  # why no row was read: damage, or another schema
    damaged: bool = False
    failing: dict[str, int] = field(default_factory=dict)  # rows by check
    examples: dict[str, list[list[Any]]] = field(default_factory=dict)  # by check: row number, row_id, value
    label_counts: list[int] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)  # by column: texts in other scripts than expected
    differences: list[str] = field(default_factory=list)  # from the contract's schema
    schema: list[list[str]] = field(default_factory=list)  # name and type of each column, where it differs
    stamp: tuple[int, ...] = ()  # the file's, when it was hashed


def judge_partition(job: PartitionJob) -> PartitionVerdict:
    """The verdict on one file; found where the same bytes were judged before by the same rules.
    RetryableError: the file changes meanwhile.
    """
    from filelock import FileLock

    try:
        stamp = file_stamp(job.path)
        sha256 = file_sha256(job.path)
    except OSError as error:
        return PartitionVerdict(
            job.relative, job.task.name, "", "", refused=f"cannot be read ({error})", damaged=True
        )
    rules = {
        "task": job.task.model_dump(mode="json"),
        "judged": job.judged,
        "scripts": job.scripts,
        "columns": [c.name for c in COLUMNS],
    }
    folder = job.work_dir / json_sha256({"sha256": sha256, "code": rules_digest(), **rules})[:32]
    job.work_dir.mkdir(parents=True, exist_ok=True)
    # a file of the same bytes may be judged beside this one
    with FileLock(job.work_dir / f".{folder.name}.lock"):
        if not is_whole(folder):
            remove_tree(folder)
            staged = temporary_beside(folder)
            try:
                staged.mkdir()
                verdict = read_and_judge(job, sha256, staged)
                check_unchanged(job.path, stamp)
                if verdict.damaged:  # maybe the disk and not the file: looked at again the next time
                    return replace(verdict, stamp=stamp)
                write_json(
                    staged / "verdict.json",
                    {
                        **asdict(verdict),
                        "sizes": {path.name: path.stat().st_size for path in staged.iterdir()},
                    },
                )
                staged.rename(folder)
            finally:
                remove_tree(staged)
        kept = {name: value for name, value in read_json(folder / "verdict.json").items() if name != "sizes"}
    # the same bytes may lie under another name now
    return PartitionVerdict(**{**kept, "relative": job.relative, "folder": str(folder), "stamp": stamp})


@functools.cache
def rules_digest() -> str:
    """Digest of the code that judges a file: the registered checks and what runs them. Verdicts are kept
    under it, so that an edit of a rule has files judged anew.
    """
    load_installed_extensions()
    modules = {inspect.getsourcefile(builder) for builder in DATA_CHECKS.values()}
    modules |= {module.__file__ for module in (row_checks, schema, hashing, scripts, text_bytes)}
    return json_sha256(sorted(file_sha256(Path(str(path))) for path in {*modules, __file__}))


def file_stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, stamp: Sequence[int]) -> None:
    """RetryableError if a file is not what it was when it was hashed."""
    try:
        unchanged = file_stamp(path) == tuple(stamp)
    except OSError:
        unchanged = False
    if not unchanged:
        raise RetryableError(
            f"{path} was changed while it was judged; run the same command again when nothing writes to it"
        )


def is_whole(folder: Path) -> bool:
    """Whether a verdict is there with all that belongs to it: after a power cut files may be cut short."""
    try:
        sizes = read_json(folder / "verdict.json")["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, DamagedInputError):
        return False


def read_and_judge(job: PartitionJob, sha256: str, folder: Path) -> PartitionVerdict:
    """Judge every row of a file and write what the gate needs of it into `folder`."""
    verdict: dict[str, Any] = {
        "relative": job.relative,
        "task": job.task.name,
        "sha256": sha256,
        "folder": "",
    }
    try:
        with open_partition(job.path) as file:
            schema = file.schema_arrow
            differences = schema_difference(schema)
            if differences:
                types = [[f.name, str(f.type)] for f in schema]
                rows = file.metadata.num_rows
                return PartitionVerdict(
                    **verdict,
                    rows=rows,
                    refused="; ".join(differences),
                    differences=differences,
                    schema=types,
                )
            scan = RowScan(job.task, job.judged, job.scripts)
            with (
                pq.ParquetWriter(folder / "keys.parquet", KEY_SCHEMA, compression="none") as keys,
                pq.ParquetWriter(folder / "reasons.parquet", REASON_SCHEMA, compression="zstd") as reasons,
            ):
                for table in read_batches(file, job.path):
                    key_table, reason_table = scan.judge(table)
                    keys.write_table(key_table)
                    if reason_table.num_rows:
                        reasons.write_table(reason_table)
    except DamagedInputError as error:
        return PartitionVerdict(**verdict, refused=str(error), damaged=True)
    pq.write_table(scan.sample(), folder / "sample.parquet")
    return PartitionVerdict(
        **verdict,
        rows=scan.num_rows,
        bad_rows=scan.num_bad,
        failing=scan.failing,
        examples=scan.examples,
        label_counts=[int(count) for count in scan.label_counts],
        foreign=dict(scan.foreign),
    )


def read_batches(file: pq.ParquetFile, path: Path) -> Iterator[pa.Table]:
    """The file's rows, some at a time: fewer where texts are long. DamagedInputError: a page does not match
    its checksum, or cannot be decoded.
    """
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    batch_rows = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(row_bytes, 1.0))))
    batches = file.iter_batches(batch_size=batch_rows, use_threads=False)  # files are read side by side
    while True:
        with naming_damage(path):  # of reading alone: what is done with the rows is not the file's doing
            batch = next(batches, None)
        if batch is None:
            return
        yield pa.table(batch.columns, names=ROW_SCHEMA.names)
