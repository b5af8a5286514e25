"""Cache of a run's encoded rows: encodes row groups in parallel and publishes one folder.

pipeline/encoding/encoded_dataset.py defines the folder. Its name is a digest of everything that determines
the rows and their ids, so a folder may be damaged but never stale.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from models.backbone import BackboneUnavailableError, load_tokenizer
from models.files import file_sha256, publish_dir, remove_tree, temporary_path
from models.serialization.bundle import is_tokenizer_file
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SPLITS, Split, SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.parallel_map import map_in_order
from pipeline.data.parquet_batches import BatchLimits
from pipeline.data.reader import check_schema, open_partition, read_rows
from pipeline.data.splits import assign_splits
from pipeline.encoding.batches import encode_table
from pipeline.encoding.encoded_dataset import (
    FORMAT,
    MANIFEST,
    EncodedWriter,
    encoded_file_name,
    is_intact,
    write_manifest,
)
from pipeline.encoding.encoder import ENCODER_VERSION, Encoder
from pipeline.errors import ConfigError, RetryableError
from pipeline.runtime.progress import Progress
from pipeline.runtime.waiting import hold_lock
from pipeline.storage.filesystem import json_sha256, safe_join

logger = logging.getLogger(__name__)

BATCH_ROWS = 8_192  # bounds the texts and id lists that are Python objects at a time


@dataclass(frozen=True)
class EncodingPlan:
    """Input and settings of an encoding."""

    partitions: dict[str, list[Path]]  # files by task, from `find_partitions`
    split: SplitConfig
    tasks: tuple[Task, ...]  # tasks to encode; partitions of other tasks are ignored
    encode: EncodeConfig
    tokenizer_dir: Path

    @property
    def encoded_partitions(self) -> dict[str, list[Path]]:
        """Partitions of `tasks`."""
        return {task.name: self.partitions[task.name] for task in self.tasks if task.name in self.partitions}


@dataclass(frozen=True)
class RowGroup:
    """One row group of one partition, with all that a worker needs to encode it."""

    task_name: str
    path: Path
    first_row: int  # number in the file
    num_rows: int
    split: SplitConfig
    tasks: tuple[Task, ...]
    encode: EncodeConfig
    tokenizer_dir: Path
    tokenizer_sha256: str


def publish_encoded(plan: EncodingPlan, run_dir: Path, progress: Progress) -> Path:
    """Return the folder of the plan's encoded rows; build it unless it is intact.

    A build removes older folders of the run. A killed build leaves nothing visible. Of two processes one
    builds and the other waits.

    Raises:
        DamagedInputError: A partition is not complete parquet.
        DataRefusedError: A partition does not have the contract's schema.
        ConfigError: The tokenizer or a template is unusable, or the folder is a link.
        RetryableError: A worker died, or the rows changed during the encoding.
    """
    root = safe_join(run_dir, "cache", "encoded")  # whose other entries are removed
    key = encoding_key(plan)
    root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root / ".lock", f"another process that encodes rows in {root}"):
        if is_intact(root / key):
            return root / key
        _log_reason(root, key)
        staged = temporary_path(root / key)
        try:
            write_encoded(plan, staged, progress)
            if encoding_key(plan) != key:
                raise RetryableError(
                    "rows or tokenizer changed during the encoding; run the same command again"
                )
            publish_dir(staged, root / key)
        finally:
            remove_tree(staged)
        for path in list(root.iterdir()):
            if path.is_dir() and path.name != key:
                remove_tree(path)
    return root / key


def _log_reason(root: Path, key: str) -> None:
    """Log why rows that were encoded before are encoded again."""
    for path in sorted(root.iterdir()):
        if path.name == key:
            logger.warning("encoded rows damaged: %s; rows are encoded again", path)
        elif (path / MANIFEST).is_file():
            logger.info("encoded rows of other data, settings or format: %s; rows are encoded again", path)


def encoding_key(plan: EncodingPlan) -> str:
    """Return the hex SHA-256 of everything that determines the encoded rows and their order."""
    return json_sha256(
        {
            "format": FORMAT,
            # in reading order, which `data_digest` does not fix
            "data": {
                name: [file_sha256(path) for path in paths] for name, paths in plan.encoded_partitions.items()
            },
            "split": plan.split.model_dump(mode="json"),
            "templates": {task.name: task.template for task in plan.tasks if task.name in plan.partitions},
            "encode": plan.encode.model_dump(mode="json"),
            "encoder_version": ENCODER_VERSION,
            "tokenizer": tokenizer_sha256(plan.tokenizer_dir),
            "libraries": {name: version(name) for name in ("tokenizers", "transformers")},
        }
    )


def tokenizer_sha256(folder: Path) -> str:
    """Return the hex SHA-256 of the names and contents of a tokenizer's files.

    It is equal for the folder of a backbone and for the copy in a bundle.
    """
    return json_sha256({path.name: file_sha256(path) for path in folder.iterdir() if is_tokenizer_file(path)})


def write_encoded(plan: EncodingPlan, staged: Path, progress: Progress) -> None:
    """Encode every row group and write the files, then the manifest."""
    tokenizer_dir = staged / "tokenizer"
    tokenizer_dir.mkdir(parents=True)
    for path in filter(is_tokenizer_file, plan.tokenizer_dir.iterdir()):
        shutil.copyfile(path, tokenizer_dir / path.name)
    digest = tokenizer_sha256(tokenizer_dir)
    # refuse an unusable template before any worker starts
    load_encoder(tokenizer_dir, digest, plan.tasks, plan.encode)
    groups = list(row_groups(plan, tokenizer_dir, digest))
    num_done, num_rows = 0, sum(group.num_rows for group in groups)
    paths = {
        (task, split): staged / encoded_file_name(task, split)
        for task in plan.encoded_partitions
        for split in SPLITS
    }
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress.track("encode", num_rows, "rows"))
        bar.update(num_done)
        writers = {key: stack.enter_context(EncodedWriter(path)) for key, path in paths.items()}
        for group, tables in zip(groups, map_in_order(encode_row_group, groups), strict=True):
            for split, table in tables.items():
                writers[group.task_name, split].write(table)
            num_done += group.num_rows
            bar.update(num_done)
    write_manifest(staged)


def row_groups(plan: EncodingPlan, tokenizer_dir: Path, digest: str) -> Iterator[RowGroup]:
    """Yield the row groups of the plan in the order of their files."""
    for name, paths in plan.encoded_partitions.items():
        for path in paths:
            with open_partition(path) as file:
                check_schema(file, path)
                counts = file.row_counts
            first_row = 0
            for num_rows in counts:
                yield RowGroup(
                    task_name=name,
                    path=path,
                    first_row=first_row,
                    num_rows=num_rows,
                    split=plan.split,
                    tasks=plan.tasks,
                    encode=plan.encode,
                    tokenizer_dir=tokenizer_dir,
                    tokenizer_sha256=digest,
                )
                first_row += num_rows


def encode_row_group(group: RowGroup) -> dict[Split, pa.Table]:
    """Return the labeled rows of a row group by split, as ENCODED_SCHEMA and in their order.

    Splits without a row are left out.
    """
    encoder = load_encoder(group.tokenizer_dir, group.tokenizer_sha256, group.tasks, group.encode)
    task = next(task for task in group.tasks if task.name == group.task_name)
    columns = ["row_id", "query", *task.ad_columns, "label", "weight"]
    parts: dict[Split, list[pa.Table]] = {split: [] for split in SPLITS}
    span = group.first_row, group.first_row + group.num_rows
    with open_partition(group.path) as file:
        for rows in read_rows(file, group.path, columns, span, BatchLimits(BATCH_ROWS)):
            labeled_rows = rows.filter(pc.is_valid(rows.column("label")))
            encoded = encode_table(encoder, labeled_rows, group.task_name)
            split_N = assign_splits(labeled_rows.column("query").to_pylist(), group.split)
            for split in SPLITS:
                parts[split].append(encoded.filter(pa.array(split_N == split)))
    tables = {split: pa.concat_tables(batches) for split, batches in parts.items() if batches}
    return {split: table for split, table in tables.items() if table.num_rows}


@lru_cache(maxsize=1)  # a worker process encodes many row groups with one tokenizer
def load_encoder(tokenizer_dir: Path, digest: str, tasks: Sequence[Task], config: EncodeConfig) -> Encoder:
    """Return the encoder with the tokenizer in a folder.

    Args:
        tokenizer_dir: Folder of the tokenizer.
        digest: Digest of the folder's content; part of the cache key.
        tasks: Tasks with their templates.
        config: Length limits.

    Raises:
        ConfigError: The tokenizer does not load or does not fit a template.
    """
    try:
        return Encoder(load_tokenizer(tokenizer_dir), tasks, config)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(f"{error}") from error
