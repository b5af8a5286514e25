"""The judged rows of a run, tokenised once: row groups in parallel, published as a folder of
pipeline/encoding/encoded_dataset.py.

The key follows from all that decides the rows and their ids, so a folder of that name is right or damaged,
never stale.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.backbone import load_tokenizer
from models.files import file_sha256
from models.serialization.bundle import is_tokenizer_file
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SPLITS, Split, SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.parallel_map import map_in_order
from pipeline.data.reader import check_schema, naming_damage, open_partition
from pipeline.data.splits import split_rows
from pipeline.encoding.encoded_dataset import ENCODED_SCHEMA, FORMAT, encoded_name, is_whole, write_manifest
from pipeline.encoding.encoder import ENCODER_VERSION, Encoder
from pipeline.errors import ConfigError, RetryableError
from pipeline.storage.filesystem import json_sha256, publish_dir, remove_tree, temporary_beside

ROWS_AT_ONCE = 8_192  # whose texts and id lists are Python objects at a time

OnProgress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class EncodingPlan:
    """What is to be encoded, and how."""

    partitions: dict[str, list[Path]]  # `find_partitions`'s
    split: SplitConfig
    tasks: tuple[Task, ...]  # those that are encoded; partitions of others are left out
    encode: EncodeConfig
    tokenizer_dir: Path

    @property
    def encoded_partitions(self) -> dict[str, list[Path]]:
        """The partitions of `tasks`."""
        return {task.name: self.partitions[task.name] for task in self.tasks if task.name in self.partitions}


@dataclass(frozen=True)
class RowGroup:
    """One row group of one partition, and what a worker needs to encode it."""

    task_name: str
    path: Path
    index: int
    num_rows: int
    split: SplitConfig
    tasks: tuple[Task, ...]
    encode: EncodeConfig
    tokenizer_dir: Path
    tokenizer_sha256: str


def publish_encoded(plan: EncodingPlan, run_dir: Path, on_progress: OnProgress) -> Path:
    """The folder of the plan's encoded rows. Built unless it is there whole; then older ones of the run are
    removed.

    A killed build leaves nothing visible. Of two processes one builds and the other waits for it.
    DamagedInputError, DataRefusedError: a partition is not whole or not of the contract. ConfigError: the
    tokenizer or a template is unfit. RetryableError: a worker died, or the rows changed meanwhile.
    """
    from filelock import FileLock

    root = run_dir / "cache" / "encoded"
    key = encoding_key(plan)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if is_whole(root / key):
            return root / key
        staged = temporary_beside(root / key)
        try:
            write_encoded(plan, staged, on_progress)
            if encoding_key(plan) != key:
                raise RetryableError(
                    "the judged rows or the tokenizer changed while they were encoded; run the same "
                    "command again"
                )
            publish_dir(staged, root / key)
        finally:
            remove_tree(staged)
        for other in [path for path in root.iterdir() if path.is_dir() and path.name != key]:
            remove_tree(other)
    return root / key


def encoding_key(plan: EncodingPlan) -> str:
    """Hex sha256 of all that the encoded rows and their order follow from."""
    return json_sha256(
        {
            "format": FORMAT,
            # the files in the order they are read, which `data_digest` leaves open
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
    """Hex sha256 over the names and contents of a tokenizer's files: the same for a backbone's folder and for
    a bundle's copy.
    """
    return json_sha256({path.name: file_sha256(path) for path in folder.iterdir() if is_tokenizer_file(path)})


def write_encoded(plan: EncodingPlan, staged: Path, on_progress: OnProgress) -> None:
    """Encode every row group and write the files, then the manifest."""
    tokenizer_dir = staged / "tokenizer"
    tokenizer_dir.mkdir(parents=True)
    for path in filter(is_tokenizer_file, plan.tokenizer_dir.iterdir()):
        shutil.copyfile(path, tokenizer_dir / path.name)
    digest = tokenizer_sha256(tokenizer_dir)
    # so that an unfit template is told before any worker is busy
    load_encoder(tokenizer_dir, digest, plan.tasks, plan.encode)
    groups = list(row_groups(plan, tokenizer_dir, digest))
    done, total = 0, sum(group.num_rows for group in groups)
    on_progress(done, total)
    names = {(task, side): encoded_name(task, side) for task in plan.encoded_partitions for side in SPLITS}
    with contextlib.ExitStack() as stack:
        writers = {
            pair: stack.enter_context(pq.ParquetWriter(staged / name, ENCODED_SCHEMA))
            for pair, name in names.items()
        }
        for group, tables in zip(groups, map_in_order(encode_row_group, groups), strict=True):
            for side, table in tables.items():
                writers[group.task_name, side].write_table(table)
            done += group.num_rows
            on_progress(done, total)
    write_manifest(staged)


def row_groups(plan: EncodingPlan, tokenizer_dir: Path, digest: str) -> Iterator[RowGroup]:
    """All row groups of the plan in the order of their files."""
    for name, paths in plan.encoded_partitions.items():
        for path in paths:
            with open_partition(path) as file:
                check_schema(file, path)
                counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            for index, num_rows in enumerate(counts):
                yield RowGroup(
                    name, path, index, num_rows, plan.split, plan.tasks, plan.encode, tokenizer_dir, digest
                )


def encode_row_group(group: RowGroup) -> dict[Split, pa.Table]:
    """The judged rows of one row group by side (ENCODED_SCHEMA), in their order; sides without a row are left
    out.
    """
    encoder = load_encoder(group.tokenizer_dir, group.tokenizer_sha256, group.tasks, group.encode)
    template = next(task for task in group.tasks if task.name == group.task_name)
    columns = ["row_id", "query", *template.ad_columns, "label", "weight"]
    parts: dict[Split, list[pa.Table]] = {side: [] for side in SPLITS}
    with open_partition(group.path) as file, naming_damage(group.path):
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group.index], columns=columns):
            batch.validate(full=True)
            rows = pa.Table.from_batches([batch])
            judged = rows.filter(pc.is_valid(rows.column("label")))
            encoded = encoded_table(encoder, judged, group.task_name)
            side_N = split_rows(judged.column("query").to_pylist(), group.split)
            for side in SPLITS:
                parts[side].append(encoded.filter(pa.array(side_N == side)))
    whole = {side: pa.concat_tables(tables) for side, tables in parts.items() if tables}
    return {side: table for side, table in whole.items() if table.num_rows}


def encoded_table(encoder: Encoder, rows: pa.Table, task_name: str) -> pa.Table:
    """Contract rows of one task as rows of ENCODED_SCHEMA."""
    ids = pa.array(encoder.encode(rows, task_name), pa.list_(pa.int32()))
    weight = rows.column("weight").fill_null(1.0)
    columns = [
        rows.column("row_id"),
        rows.column("query"),
        ids,
        pc.list_value_length(ids),
        rows.column("label"),
        weight,
    ]
    return pa.table(columns, schema=ENCODED_SCHEMA)


@lru_cache(maxsize=1)  # a worker process encodes many row groups with one tokenizer
def load_encoder(tokenizer_dir: Path, digest: str, tasks: Sequence[Task], config: EncodeConfig) -> Encoder:
    """The encoder of a tokenizer's folder; ConfigError if they do not fit together. `digest` tells two
    contents of one folder apart.
    """
    try:
        return Encoder(load_tokenizer(tokenizer_dir), tasks, config)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
