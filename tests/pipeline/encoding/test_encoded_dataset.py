"""Files of encoded rows are mapped, not copied, and a file that changes under its reader is an error."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.encoding import EncodeConfig
from pipeline.encoding import encoded_dataset
from pipeline.encoding.batches import ENCODED_SCHEMA, EncodedRows
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import EncodedWriter, encoded_file_name, read_encoded, write_manifest
from pipeline.errors import RetryableError
from pipeline.runtime.progress import SilentProgress
from tests.support.encoding_plans import TASKS


def encoded_table(num_rows: int, tokens: int = 3) -> pa.Table:
    names = [f"r{n}" for n in range(num_rows)]
    ids = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(num_rows * tokens, dtype=np.int32)), tokens)
    columns = [names, names, ids.cast(pa.list_(pa.int32())), np.arange(num_rows) % 2, np.ones(num_rows)]
    return pa.table(columns, names=ENCODED_SCHEMA.names).cast(ENCODED_SCHEMA)


def written_rows(folder: Path, sizes: list[int]) -> EncodedRows:
    """Return rows of the first task that were written in pieces of some sizes."""
    table, start = encoded_table(sum(sizes)), 0
    with EncodedWriter(folder / encoded_file_name(TASKS[0].name, "train")) as writer:
        for size in sizes:
            writer.write(table.slice(start, size))
            start += size
    write_manifest(folder)
    return read_encoded(folder, "train", TASKS)


def test_small_pieces_become_chunks_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_dataset, "CHUNK_ROWS", 8)
    rows = written_rows(tmp_path, [3, 3, 3, 1, 20, 0, 2])
    assert max(map(len, rows.chunks)) == 8 and len(rows.chunks) < 7
    chosen = np.array([31, 0, 8, 9, 20])
    assert rows.row_ids_of(chosen) == ["r31", "r0", "r8", "r9", "r20"]
    assert [rows.ids_of(row).tolist() for row in chosen] == [[3 * r, 3 * r + 1, 3 * r + 2] for r in chosen]
    assert rows.labels_of(chosen).tolist() == [1, 0, 0, 1, 0]


def test_reading_allocates_no_token_ids(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    rows = written_rows(tmp_path, [100_000])
    assert rows.ids_of(99_999).tolist() == [299_997, 299_998, 299_999]
    assert not rows.chunks[0].ids.flags.owndata
    assert pa.total_allocated_bytes() - before < 100_000


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "replaced": lambda path: path.write_bytes(path.read_bytes()),
    "longer": lambda path: path.open("ab").write(b"x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_file_changed_under_its_reader_is_an_error(tmp_path: Path, change: str) -> None:
    rows = written_rows(tmp_path, [10])
    rows.check_files()
    path = tmp_path / encoded_file_name(TASKS[0].name, "train")
    CHANGES[change](path)
    with pytest.raises(RetryableError, match=f"changed or removed while they are read: {path}; run the same"):
        rows.check_files()


def test_log_says_why_rows_are_encoded_again(
    plan: EncodingPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = publish_encoded(plan, tmp_path, SilentProgress())
    assert not caplog.records
    (folder / "manifest.json").write_text("{}")
    publish_encoded(plan, tmp_path, SilentProgress())
    publish_encoded(replace(plan, encode=EncodeConfig(max_tokens=65)), tmp_path, SilentProgress())
    assert [record.message for record in caplog.records] == [
        f"encoded rows damaged: {folder}; rows are encoded again",
        f"encoded rows of other data, settings or format: {folder}; rows are encoded again",
    ]
