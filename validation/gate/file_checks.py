"""Verdict on one parquet file: its bad rows with reasons, and what other files are compared by.

The file is read as a stream. Verdicts are cached by the file's bytes and the rules.
"""

from __future__ import annotations

import functools
import inspect
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from models.files import file_sha256, remove_tree, temporary_path
from pipeline.config.extensions import DATA_CHECKS, load_installed_extensions
from pipeline.config.tasks import Task
from pipeline.data.reader import read_rows
from pipeline.data.row_files import RowFile, open_copy
from pipeline.errors import (
    DamagedInputError,
    DataRefusedError,
    RelevanceError,
    RetryableError,
    summarize_error,
)
from pipeline.runtime.waiting import hold_lock
from pipeline.schema import COLUMNS, is_convertible, schema_differences
from pipeline.storage.filesystem import json_sha256, read_json, write_json
from validation.gate.row_checks import KEY_SCHEMA, REASON_SCHEMA, RowExample, RowScan

_RULE_FILES = ("pipeline/schema.py", "pipeline/data/*.py", "validation/gate/*.py", "validation/text/*.py")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileJob:
    """Arguments of `check_file`, plain enough to be sent to another machine."""

    file: RowFile
    task: Task
    labels_required: bool  # True if each row must carry a label
    work_dir: Path
    scripts: tuple[str, ...] = ()  # that its texts are expected in; none: any


class ColumnType(NamedTuple):
    """A column of a file that breaks the contract."""

    name: str
    type: str  # Arrow's name
    is_accepted: bool  # True if the contract has the column, and its values convert


@dataclass(frozen=True)
class FileVerdict:
    """Verdict on one file. `folder` holds its keys.parquet, reasons.parquet and sample.parquet."""

    relative: str  # to the data folder
    task: str
    sha256: str
    folder: str
    rows: int = 0
    bad_rows: int = 0
    refused: str = ""  # why no row was read, as the rest of a sentence that begins with the file's name
    damaged: bool = False
    failing: dict[str, int] = field(default_factory=dict)  # rows by reason
    examples: dict[str, list[RowExample]] = field(default_factory=dict)  # by reason
    label_counts: list[int] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)  # by column: texts in other scripts than expected
    differences: list[str] = field(default_factory=list)  # from the contract's schema
    schema: list[ColumnType] = field(default_factory=list)  # of a file with differences
    stamp: tuple[int, ...] = ()  # `file_stamp` when the file was hashed

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FileVerdict:
        """Build a verdict from its JSON value."""
        examples = {
            reason: [RowExample(*example) for example in examples]
            for reason, examples in value["examples"].items()
        }
        columns = [ColumnType(*column) for column in value["schema"]]
        return cls(**{**value, "examples": examples, "schema": columns, "stamp": tuple(value["stamp"])})


def check_file(job: FileJob) -> FileVerdict:
    """Check one file, or return the cached verdict on the same bytes and rules.

    Of an object, the same version counts as the same bytes.

    Raises:
        RetryableError: The file changed meanwhile, or the object store fails.
    """
    name = job.file.name
    try:
        stamp = job.file.stamp()
        key = _cache_key(job)
    except OSError as error:
        return FileVerdict(
            name, job.task.name, "", "", refused=f" cannot be read ({error.strerror})", damaged=True
        )
    folder = job.work_dir / key
    job.work_dir.mkdir(parents=True, exist_ok=True)
    # a file of the same bytes may be checked at the same time
    with hold_lock(job.work_dir / f".{folder.name}.lock", f"another process that checks {job.file.url}"):
        if not is_complete(folder):
            remove_tree(folder)
            staged = temporary_path(folder)
            try:
                staged.mkdir()
                verdict = read_and_check(job, staged)
                check_unchanged(job.file, stamp)
                if verdict.damaged:  # not cached: the disk may be at fault, and not the file
                    return replace(verdict, stamp=stamp)
                sizes = {path.name: path.stat().st_size for path in staged.iterdir()}
                write_json(staged / "verdict.json", {**verdict.to_json(), "sizes": sizes})
                staged.rename(folder)
            finally:
                remove_tree(staged)
        recorded = read_json(folder / "verdict.json")
    del recorded["sizes"]
    # the same bytes may have another name in this run
    return replace(FileVerdict.from_json(recorded), relative=name, folder=str(folder), stamp=stamp)


def _cache_key(job: FileJob) -> str:
    key = {
        "content": job.file.content_key(),
        "code": rules_digest(),
        "task": job.task.model_dump(mode="json"),
        "judged": job.labels_required,
        "scripts": job.scripts,
        "columns": [c.name for c in COLUMNS],
    }
    return json_sha256(key)[:32]


@functools.cache
def rules_digest() -> str:
    """Return the digest of the code that checks a file: the registered checks and what runs them.

    It is part of the cache key, so that files are checked again when a rule changes. Blank texts, and the
    hashes that files are compared by, depend on the Unicode tables of Python and Arrow too.
    """
    files = sorted(file_sha256(path) for path in rule_files())
    return json_sha256([files, unicodedata.unidata_version, pa.__version__])


def rule_files() -> set[Path]:
    """Return the source files that decide a verdict, those of installed extensions included."""
    load_installed_extensions()
    builders = {Path(str(inspect.getsourcefile(builder))) for builder in DATA_CHECKS.values()}
    root = Path(__file__).parents[2]
    return builders.union(*(root.glob(pattern) for pattern in _RULE_FILES))


def check_unchanged(file: RowFile, stamp: Sequence[int]) -> None:
    """Raise RetryableError if a file's stamp differs from `stamp`."""
    try:
        unchanged = file.stamp() == tuple(stamp)
    except OSError:
        unchanged = False
    if not unchanged:
        raise RetryableError(
            f"{file.url} changed during validation; run the same command again when nothing writes to it"
        )


def is_complete(folder: Path) -> bool:
    """Return True if a cached verdict and its files are whole: a power cut may leave them short."""
    try:
        sizes = read_json(folder / "verdict.json")["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, DamagedInputError):
        return False


def _without_name(error: RelevanceError, file: RowFile) -> str:
    """Return the message of a reader's error without the name at its begin: equal files share it."""
    message = str(error)
    return message.removeprefix(file.url) if message.startswith(file.url) else f": {message}"


def column_types(schema: pa.Schema) -> list[ColumnType]:
    """Describe the columns of a schema for the page about it."""
    known = {c.name: c for c in COLUMNS}
    return [
        ColumnType(f.name, str(f.type), f.name in known and is_convertible(f.type, known[f.name]))
        for f in schema
    ]


def read_and_check(job: FileJob, folder: Path) -> FileVerdict:
    """Check every row of a file; write keys, reasons and sample to `folder`."""
    known_sha256 = "" if job.file.is_object else job.file.content_key()
    verdict = FileVerdict(job.file.name, job.task.name, known_sha256, folder="")
    try:
        with open_copy(job.file, known_sha256) as (file, sha256):
            verdict = replace(verdict, sha256=sha256)
            differences = schema_differences(file.schema_arrow)
            if differences:
                return replace(
                    verdict,
                    rows=file.metadata.num_rows,
                    refused=f": {'; '.join(differences)}",
                    differences=differences,
                    schema=column_types(file.schema_arrow),
                )
            scan = RowScan(job.task, job.labels_required, job.scripts)
            with (
                pq.ParquetWriter(folder / "keys.parquet", KEY_SCHEMA, compression="none") as keys,
                pq.ParquetWriter(folder / "reasons.parquet", REASON_SCHEMA, compression="zstd") as reasons,
            ):
                for table in read_rows(file, job.file.url, check_text=False):
                    key_table, reason_table = scan.check_batch(table)
                    keys.write_table(key_table)
                    if reason_table.num_rows:
                        reasons.write_table(reason_table)
    except DamagedInputError as error:
        return replace(verdict, refused=_without_name(error, job.file), damaged=True)
    except DataRefusedError as error:
        return replace(verdict, refused=_without_name(error, job.file))
    except (MemoryError, OSError, RelevanceError):  # not the file's
        raise
    except Exception as error:  # of a check: the other files are judged without it
        logger.exception("check failed: %s", job.file.url)
        problem = f" cannot be checked ({summarize_error(error)}); remove it, and report it"
        return replace(verdict, refused=problem, damaged=True)
    pq.write_table(scan.sample(), folder / "sample.parquet")
    return replace(
        verdict,
        rows=scan.num_rows,
        bad_rows=scan.num_bad,
        failing=scan.failing,
        examples=scan.examples,
        label_counts=[int(count) for count in scan.label_counts],
        foreign=dict(scan.foreign),
    )
