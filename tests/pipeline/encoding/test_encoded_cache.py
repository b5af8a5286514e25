"""Rows are encoded once: the cache holds exactly the encoder's ids, and a damaged cache is rebuilt."""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.backbone import load_tokenizer
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.data.reader import read_split
from pipeline.encoding import encoded_cache
from pipeline.encoding.batches import EncodedRows, encode_rows
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ConfigError, DamagedInputError, DataRefusedError, RetryableError
from pipeline.runtime.progress import SilentProgress
from pipeline.schema import ROW_SCHEMA
from tests.support.encoding_plans import (
    ENCODE,
    SPLIT,
    TASKS,
    RecordingProgress,
    altered_row,
    changed_task,
    other_tokenizer,
    write_judged,
)
from tests.support.linked_folders import link_away, refuses_link
from tests.support.planted import planted_rows


def assert_equal_rows(one: EncodedRows, other: EncodedRows) -> None:
    rows = np.arange(len(other))
    for name in ("tasks_of", "labels_of", "weights_of"):
        mine, theirs = getattr(one, name)(rows), getattr(other, name)(rows)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name
    assert [one.ids_of(row).tolist() for row in rows] == [other.ids_of(row).tolist() for row in rows]
    assert one.ids_of(0).dtype == other.ids_of(0).dtype and np.array_equal(one.length_N, other.length_N)
    assert one.row_id_N.equals(other.row_id_N) and one.query_N.equals(other.query_N)


@pytest.mark.parametrize("batch_rows", [5, encoded_cache.BATCH_ROWS])
def test_cached_rows_equal_those_of_the_encoder(
    plan: EncodingPlan, judged: Path, tmp_path: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded_cache, "BATCH_ROWS", batch_rows)
    folder = publish_encoded(plan, tmp_path, SilentProgress())
    encoder = Encoder(load_tokenizer(plan.tokenizer_dir), TASKS, ENCODE)
    for side in SPLITS:
        expected = encode_rows(read_split(judged, TASKS, SPLIT, side), TASKS, encoder)
        assert (
            set(expected.task_N.tolist()) == {0, 2}
            and len(set(expected.weights_of(np.arange(len(expected))))) > 3
        )
        assert_equal_rows(read_encoded(folder, side, TASKS), expected)


def test_progress_counts_every_row_from_zero(plan: EncodingPlan, tmp_path: Path) -> None:
    progress = RecordingProgress()
    publish_encoded(plan, tmp_path, progress)
    updates = progress.updates
    assert updates[0] == (0, 151) and updates[-1] == (151, 151)
    assert updates == sorted(updates) and len(updates) > 8


def test_only_one_batch_of_texts_is_in_memory(
    plan: EncodingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Encoder.encode
    monkeypatch.setattr(encoded_cache, "BATCH_ROWS", 7)
    monkeypatch.setattr(
        Encoder, "encode", lambda self, table, name: sizes.append(table.num_rows) or real(self, table, name)
    )
    publish_encoded(plan, tmp_path, SilentProgress())
    assert max(sizes) == 7 and sum(sizes) > 100


def assert_cached(plan: EncodingPlan, run_dir: Path, folder: Path) -> None:
    """Check that a plan's rows are in a folder and are not encoded again."""
    progress = RecordingProgress()
    assert publish_encoded(plan, run_dir, progress) == folder and progress.updates == []


def test_encoded_rows_are_reused(plan: EncodingPlan, tmp_path: Path) -> None:
    folder = publish_encoded(plan, tmp_path, SilentProgress())
    assert_cached(plan, tmp_path, folder)


def test_split_without_rows_is_empty(plan: EncodingPlan, judged: Path, tmp_path: Path) -> None:
    rare = SplitConfig(valid_share=1e-9, test_share=0.3)
    folder = publish_encoded(replace(plan, split=rare), tmp_path, SilentProgress())
    none, some = (read_encoded(folder, side, TASKS) for side in ("valid", "test"))
    assert (
        len(none) == 0 and none.labels_of(np.arange(0)).dtype == np.int64 and none.row_id_N.to_pylist() == []
    )
    for name in ("length_N", "task_N"):
        assert getattr(none, name).dtype == getattr(some, name).dtype, name
    assert len(some) > 20


def test_tasks_that_are_not_encoded_are_left_out(plan: EncodingPlan, tmp_path: Path) -> None:
    folder = publish_encoded(replace(plan, tasks=TASKS[:2]), tmp_path, SilentProgress())
    assert set(read_encoded(folder, "train", TASKS).task_N.tolist()) == {0}


def test_older_keys_are_removed_only_after_a_build(plan: EncodingPlan, tmp_path: Path) -> None:
    old = publish_encoded(plan, tmp_path, SilentProgress())
    (old.parent / f".{old.name}.0.tmp").mkdir()
    broken = changed_task(plan, template="word " * 60 + "{query}{ad_title}")
    with pytest.raises(ConfigError, match="over half of encode.max_tokens"):
        publish_encoded(broken, tmp_path, SilentProgress())
    assert_cached(plan, tmp_path, old)
    new = publish_encoded(replace(plan, encode=EncodeConfig(max_tokens=65)), tmp_path, SilentProgress())
    assert sorted(path.name for path in new.parent.iterdir()) == sorted([".lock", new.name])


@pytest.mark.parametrize(("link", "below"), [("cache/encoded", ""), ("cache", "encoded")])
def test_linked_cache_is_refused_and_keeps_its_content(
    plan: EncodingPlan, tmp_path: Path, link: str, below: str
) -> None:
    kept = link_away(tmp_path / "run" / link, below)
    with refuses_link():
        publish_encoded(plan, tmp_path / "run", SilentProgress())
    assert kept.is_file()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "another task's": lambda path: shutil.copy(path.with_name("train-three.arrow"), path),
    **{f"bit {seed} flipped": lambda path, seed=seed: flip(path, seed) for seed in range(8)},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", ["train-two.arrow", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_refused_and_rebuilt(
    plan: EncodingPlan, tmp_path: Path, damage: str, name: str
) -> None:
    folder = publish_encoded(plan, tmp_path, SilentProgress())
    before = content(folder)
    DAMAGES[damage](folder / name)
    with pytest.raises(DamagedInputError, match=name):
        read_encoded(folder, "train", TASKS)
    progress = RecordingProgress()
    assert publish_encoded(plan, tmp_path, progress) == folder
    assert progress.updates and content(folder) == before


def test_failed_build_leaves_nothing_visible(plan: EncodingPlan, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > 40:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        publish_encoded(plan, tmp_path, RecordingProgress(fail))
    assert [path.name for path in (tmp_path / "cache" / "encoded").iterdir()] == [".lock"]


def build_and_die(plan: EncodingPlan, run_dir: Path, done_rows: int) -> None:
    def die(done: int, total: int) -> None:
        if done > done_rows:
            os.kill(os.getpid(), signal.SIGKILL)

    publish_encoded(plan, run_dir, RecordingProgress(die))


def test_killed_build_is_invisible_and_the_next_removes_it(plan: EncodingPlan, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=build_and_die, args=(plan, tmp_path, 40))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    root = tmp_path / "cache" / "encoded"
    remaining = [path.name for path in root.iterdir()]
    assert len(remaining) == 2 and all(name.startswith(".") for name in remaining)
    folder = publish_encoded(plan, tmp_path, SilentProgress())
    assert sorted(path.name for path in root.iterdir()) == sorted([".lock", folder.name])


def build_and_report(plan: EncodingPlan, run_dir: Path, results: Any) -> None:
    progress = RecordingProgress()
    folder = publish_encoded(plan, run_dir, progress)
    results.put((folder, len(read_encoded(folder, "train", TASKS)), bool(progress.updates)))


def test_one_of_several_processes_builds_for_all(plan: EncodingPlan, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=build_and_report, args=(plan, tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(60)
    assert len({outcome[:2] for outcome in outcomes}) == 1
    assert [outcome[2] for outcome in outcomes].count(True) == 1


def test_rows_changed_during_the_encoding_are_not_published(plan: EncodingPlan, tmp_path: Path) -> None:
    def alter_rows(done: int, total: int) -> None:
        if done == total:
            altered_row(plan, tmp_path)

    with pytest.raises(RetryableError, match="changed during the encoding"):
        publish_encoded(plan, tmp_path, RecordingProgress(alter_rows))
    assert [path.name for path in (tmp_path / "cache" / "encoded").iterdir()] == [".lock"]


def write_foreign(path: Path) -> None:
    pq.write_table(pa.table({"row_id": ["a"], "query": ["b"]}), path)


def write_invalid_text(path: Path) -> None:
    table = pa.Table.from_pylist(planted_rows("two", 4, 9), schema=ROW_SCHEMA)
    broken = pa.array([b"ok", b"\xff\xfe", b"ok", b"ok"]).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(1, ROW_SCHEMA.field("query"), broken), path)


REFUSALS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        DamagedInputError,
        "is not whole parquet",
    ),
    "foreign": (write_foreign, DataRefusedError, "does not follow the row contract"),
    "not UTF-8": (write_invalid_text, DamagedInputError, "is damaged"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_partition_is_refused_with_its_path(plan: EncodingPlan, tmp_path: Path, case: str) -> None:
    spoil, kind, message = REFUSALS[case]
    path = plan.partitions["two"][0]
    spoil(path)
    with pytest.raises(kind, match=f"{path} {message}"):
        publish_encoded(plan, tmp_path, SilentProgress())


def test_unreadable_tokenizer_is_a_config_error(plan: EncodingPlan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        publish_encoded(other_tokenizer(plan, tmp_path, "tokenizer.json", "{"), tmp_path, SilentProgress())


@pytest.fixture
def ray_of_two() -> Iterator[None]:
    """Start Ray with two workers on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.e2e
@pytest.mark.usefixtures("ray_of_two")
def test_ray_workers_write_same_bytes_and_raise_same_errors(plan: EncodingPlan, tmp_path: Path) -> None:
    import ray

    folder = publish_encoded(plan, tmp_path / "many", SilentProgress())
    write_invalid_text(plan.partitions["two"][0])
    with pytest.raises(DamagedInputError, match=f"^{plan.partitions['two'][0]} is damaged"):
        publish_encoded(plan, tmp_path / "refused", SilentProgress())
    ray.shutdown()
    write_judged(plan.partitions["two"][0].parents[1])
    assert content(publish_encoded(plan, tmp_path / "one", SilentProgress())) == content(folder)
