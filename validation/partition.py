"""One parquet file against the row contract, in a stream: which rows are bad and why, and what other files must be compared with.

Shape legend: N rows of the file, M rows of a batch.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedInputError
from pipeline.files import file_sha256, json_sha256, read_json, remove_tree, temporary_beside, write_json
from pipeline.reader import open_partition
from pipeline.schema import COLUMNS, ROW_SCHEMA, TEXT_COLUMNS, schema_difference
from pipeline.tasks import Task
from validation.data_docs import NUM_EXAMPLES
from validation.expectations import Check, build_checks, failing_rows
from validation.hashing import hash_column
from validation.scripts import count_foreign
from validation.text_bytes import normalise_texts

GATE_VERSION = 4  # changes when the same file would be judged otherwise
BATCH_ROWS = 65_536
SAMPLE_ROWS = 2_000  # rows of a file that Great Expectations sees; all rows of smaller files
NOT_UTF8 = "not_utf8"  # reason of a row with bytes that are no text; the other reasons are the names of checks
KEY_SCHEMA = pa.schema([("row_id_hash", pa.uint64()), ("pair_hash", pa.uint64()), ("label", pa.int32())])
REASON_SCHEMA = pa.schema([("row", pa.int64()), ("reasons", pa.list_(pa.string()))])


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


def judge_partition(job: PartitionJob) -> PartitionVerdict:
    """The verdict on one file; found where the same bytes were judged before by the same rules."""
    try:
        sha256 = file_sha256(job.path)
    except OSError as error:
        return PartitionVerdict(job.relative, job.task.name, "", "", refused=f"cannot be read ({error})", damaged=True)
    rules = {"task": job.task.model_dump(mode="json"), "judged": job.judged, "scripts": job.scripts, "columns": [c.name for c in COLUMNS]}
    folder = job.work_dir / json_sha256({"sha256": sha256, "gate": GATE_VERSION, **rules})[:32]
    if not is_whole(folder):
        remove_tree(folder)
        staged = temporary_beside(folder)
        try:
            staged.mkdir()
            verdict = asdict(read_and_judge(job, sha256, staged))
            write_json(staged / "verdict.json", {**verdict, "sizes": {path.name: path.stat().st_size for path in staged.iterdir()}})
            with contextlib.suppress(OSError):  # a file of the same bytes was judged meanwhile
                staged.rename(folder)
        finally:
            remove_tree(staged)
    # the same bytes may lie under another name now
    kept = {name: value for name, value in read_json(folder / "verdict.json").items() if name != "sizes"}
    return PartitionVerdict(**{**kept, "relative": job.relative, "folder": str(folder)})


def is_whole(folder: Path) -> bool:
    """Whether a verdict is there with all that belongs to it: after a power cut files may be cut short."""
    try:
        sizes = read_json(folder / "verdict.json")["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, DamagedInputError):
        return False


def read_and_judge(job: PartitionJob, sha256: str, folder: Path) -> PartitionVerdict:
    """Judge every row of a file and write what the gate needs of it into `folder`."""
    verdict: dict[str, Any] = {"relative": job.relative, "task": job.task.name, "sha256": sha256, "folder": ""}
    try:
        with open_partition(job.path) as file:
            schema = file.schema_arrow
            differences = schema_difference(schema)
            if differences:
                types = [[f.name, str(f.type)] for f in schema]
                rows = file.metadata.num_rows
                return PartitionVerdict(**verdict, rows=rows, refused="; ".join(differences), differences=differences, schema=types)
            scan = _Scan(job)
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
        **verdict, rows=scan.num_rows, bad_rows=scan.num_bad, failing=scan.failing, examples=scan.examples,
        label_counts=[int(count) for count in scan.label_counts], foreign=dict(scan.foreign),
    )  # fmt: skip


def read_batches(file: pq.ParquetFile, path: Path) -> Iterator[pa.Table]:
    """The file's rows, some at a time. DamagedInputError: a page does not match its checksum, or cannot be decoded."""
    batches = file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)  # files are read side by side
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedInputError(f"{path} is damaged ({error}); write it again from its source") from error
        yield pa.table(batch.columns, names=ROW_SCHEMA.names)


class _Scan:
    """Counts and examples gathered while a file goes by."""

    def __init__(self, job: PartitionJob) -> None:
        self.checks = [check for check in build_checks(job.task, job.judged) if check.failing and check.name != "row_id_unique"]
        self.num_rows = self.num_bad = 0
        self.failing: dict[str, int] = {}
        self.examples: dict[str, list[list[Any]]] = {}
        self.label_counts = np.zeros(len(job.task.labels), dtype=np.int64)
        self.foreign: Counter[str] = Counter()
        self._scripts = job.scripts
        self._head: list[pa.Table] = []
        self._offenders: list[pa.Table] = []

    def judge(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(keys, reasons) of a batch."""
        table, undecoded_M = repair_text(table)
        reasons: dict[int, list[str]] = {}
        for check in self.checks:
            self._note(table, check, failing_rows(check, table), reasons)
        self._note(table, None, np.flatnonzero(undecoded_M), reasons)
        bad = sorted(reasons)
        self._keep_sample(table, bad)
        if self._scripts:
            self.foreign.update(count_foreign(table, self._scripts))
        labels = table["label"].fill_null(-1).to_numpy()
        on_scale = labels[(labels >= 0) & (labels < len(self.label_counts))]
        self.label_counts += np.bincount(on_scale, minlength=len(self.label_counts))
        rows = [self.num_rows + row for row in bad]
        self.num_rows += table.num_rows
        self.num_bad += len(bad)
        keys = pa.table([pa.array(hash_column(table["row_id"])), pa.array(hash_pairs(table)), pa.array(labels)], schema=KEY_SCHEMA)
        return keys, pa.table([rows, [reasons[row] for row in bad]], schema=REASON_SCHEMA)

    def _note(self, table: pa.Table, check: Check | None, rows: np.ndarray, reasons: dict[int, list[str]]) -> None:
        name, column = (check.name, check.column) if check else (NOT_UTF8, "row_id")
        if not len(rows):
            return
        self.failing[name] = self.failing.get(name, 0) + len(rows)
        for row in rows.tolist():
            reasons.setdefault(row, []).append(name)
        shown = self.examples.setdefault(name, [])
        for row in rows[: NUM_EXAMPLES - len(shown)].tolist():
            value = table[column][row].as_py()
            finite = not isinstance(value, float) or math.isfinite(value)  # json knows no other numbers
            shown.append([self.num_rows + row, table["row_id"][row].as_py(), value if finite else str(value)])

    def _keep_sample(self, table: pa.Table, bad: list[int]) -> None:
        missing = SAMPLE_ROWS - sum(part.num_rows for part in self._head)
        if missing > 0:
            self._head.append(table.slice(0, missing))
        beyond = [row for row in bad if row >= max(missing, 0)]
        room = SAMPLE_ROWS - sum(part.num_rows for part in self._offenders)
        if beyond and room > 0:
            self._offenders.append(table.take(beyond[:room]))

    def sample(self) -> pa.Table:
        """The first rows, and the bad ones among the others."""
        return pa.concat_tables([table.cast(nullable(ROW_SCHEMA)) for table in (ROW_SCHEMA.empty_table(), *self._head, *self._offenders)])


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema with null allowed everywhere, as bad rows need it."""
    return pa.schema([pa.field(f.name, f.type) for f in schema])


def repair_text(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The table with bytes that are no UTF-8 replaced by U+FFFD, and which rows held such bytes (M,)."""
    undecoded_M = np.zeros(table.num_rows, dtype=bool)
    try:
        table.validate(full=True)
        return table, undecoded_M
    except pa.ArrowInvalid:
        pass
    for index, column in enumerate(COLUMNS):
        if column.type == pa.string():
            raw: list[bytes | None] = table[column.name].cast(pa.binary()).to_pylist()
            texts = [None if value is None else value.decode("utf-8", "replace") for value in raw]
            pairs = zip(raw, texts, strict=True)
            undecoded_M |= np.array([value is not None and (text or "").encode() != value for value, text in pairs], dtype=bool)
            table = table.set_column(index, column.name, pa.array(texts, pa.string()))
    return table, undecoded_M


def hash_pairs(table: pa.Table) -> np.ndarray:
    """A 64-bit hash of each row's query and ad texts, normalised as the split does it (M,)."""
    pair_M = np.zeros(table.num_rows, dtype=np.uint64)
    for name in TEXT_COLUMNS:
        pair_M *= np.uint64(0x9E3779B97F4A7C15)
        if table[name].null_count < table.num_rows:  # a null reads as empty text, whose hash is 0
            pair_M += np.concatenate([hash_column(normalise_texts(chunk)) for chunk in table[name].chunks])
    return pair_M
