"""Scores are published whole and once, whoever races and whatever breaks."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring import label_store as commit
from pipeline.scoring.label_store import (
    PartitionSource,
    is_published,
    partition_id,
    publish_partition,
    read_errors,
    read_manifests,
    read_published,
    read_run,
    sweep_orphans,
)
from pipeline.scoring.row_errors import ERROR_SCHEMA
from pipeline.storage import object_store as store_module
from pipeline.storage.filesystem import put_if_absent, write_json
from tests.support.places import ROOT

FACTS = {"bundle_sha256": "b" * 64, "task": "search"}
INGREDIENTS = {
    "task": "search",
    "input_path": "task=search/a.parquet",
    "input_sha256": "1",
    "bundle_sha256": "2",
    "encoder_version": "1",
}


def score_rows(count: int, prefix: str = "r") -> pa.Table:
    values = {
        "task": "search",
        "probability": 0.5,
        "label": 1,
        "label_name": "good",
        "expected_grade": 0.5,
        "decision": "abstain",
    }
    versions = {"model_version": "1", "bundle_sha256": "b" * 64}
    return pa.Table.from_pylist(
        [{"row_id": f"{prefix}{n}", **values, **versions} for n in range(count)], SCORE_SCHEMA
    )


def files_below(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def row_ids(root: Path) -> list[str]:
    return sorted(read_published(root).column("row_id").to_pylist())


def test_published_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    assert not is_published(tmp_path, "search-1")
    assert publish_partition(tmp_path, "search-1", score_rows(5), FACTS) is True
    assert is_published(tmp_path, "search-1")
    assert read_published(tmp_path).equals(score_rows(5))
    [manifest] = read_manifests(tmp_path)
    assert (manifest["partition"], manifest["rows"], manifest["task"]) == ("search-1", 5, "search")


def test_a_second_publication_changes_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p", score_rows(5), FACTS)
    before = {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    assert publish_partition(tmp_path, "p", score_rows(9, "other"), FACTS) is False
    assert {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)} == before


def test_partitions_without_a_row_are_published_too(tmp_path: Path) -> None:
    assert publish_partition(tmp_path, "p", score_rows(0), FACTS)
    assert read_published(tmp_path).equals(score_rows(0))


def test_nothing_published_reads_as_no_rows(tmp_path: Path) -> None:
    assert read_published(tmp_path).schema == SCORE_SCHEMA and read_published(tmp_path).num_rows == 0


def test_rows_of_one_model_are_read_apart_from_those_of_another(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p1", score_rows(2, "old"), {"bundle_sha256": "1"})
    publish_partition(tmp_path, "p2", score_rows(3, "new"), {"bundle_sha256": "2"})
    assert read_published(tmp_path, "2").column("row_id").to_pylist() == ["new0", "new1", "new2"]
    assert read_published(tmp_path).num_rows == 5


def bad_rows(count: int) -> pa.Table:
    rows = [
        {
            "row_id": f"bad{n}",
            "row": n,
            "task": "search",
            "reason": "query is null",
            "bundle_sha256": "b" * 64,
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, ERROR_SCHEMA)


def test_bad_rows_are_published_with_the_labels_and_read_apart(tmp_path: Path) -> None:
    assert publish_partition(tmp_path, "p", score_rows(3), FACTS, bad_rows(2))
    assert publish_partition(tmp_path, "p", score_rows(3), FACTS, bad_rows(2)) is False
    [manifest] = read_manifests(tmp_path)
    assert (manifest["rows"], manifest["error_rows"]) == (3, 2)
    assert read_errors(tmp_path).equals(bad_rows(2)) and row_ids(tmp_path) == ["r0", "r1", "r2"]
    assert len(files_below(tmp_path)) == 3
    flip_a_byte(next((tmp_path / "errors").rglob("*.parquet")))
    with pytest.raises(DamagedInputError, match="does not match its manifest"):
        read_errors(tmp_path)


def test_a_run_is_read_without_the_partitions_of_inputs_that_were_replaced(tmp_path: Path) -> None:
    for partition, prefix in (("old", "old"), ("kept", "kept"), ("new", "new")):
        publish_partition(tmp_path, partition, score_rows(2, prefix), FACTS)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="no accepted run yet"):
        read_run(tmp_path)
    for run, partitions, accepted in (
        ("20260101-a", ["old", "kept"], True),
        ("20260102-b", ["new", "kept"], True),
        ("20260103-c", ["new"], False),
    ):
        write_json(
            tmp_path / "runs" / f"{run}.json", {"run": run, "partitions": partitions, "accepted": accepted}
        )
    assert sorted(read_run(tmp_path).column("row_id").to_pylist()) == ["kept0", "kept1", "new0", "new1"]
    assert sorted(read_run(tmp_path, "20260101-a").column("row_id").to_pylist()) == [
        "kept0",
        "kept1",
        "old0",
        "old1",
    ]
    assert sorted(read_run(tmp_path, "20260103-c").column("row_id").to_pylist()) == ["new0", "new1"]
    with pytest.raises(ConfigError, match="has no run 2026; there are: 20260101-a"):
        read_run(tmp_path, "2026")


def test_what_killed_scorers_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p", score_rows(2), FACTS, bad_rows(1))
    for stray in ("data/p/stray.parquet", "data/q/.stray.parquet.1.tmp", "errors/p/stray.parquet"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"PAR1")
    assert sweep_orphans(tmp_path) == 0
    assert sweep_orphans(tmp_path, older_than_s=-1) == 3
    assert (
        row_ids(tmp_path) == ["r0", "r1"]
        and read_errors(tmp_path).num_rows == 1
        and len(files_below(tmp_path)) == 3
    )
    assert sweep_orphans(tmp_path / "nowhere") == 0


def test_a_file_that_no_manifest_names_is_never_read(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p", score_rows(2), FACTS)
    pq.write_table(score_rows(7, "stray"), tmp_path / "data" / "p" / "stray.parquet")
    (tmp_path / "manifests" / ".p2.json.123.tmp").write_text("{")
    assert row_ids(tmp_path) == ["r0", "r1"]


@pytest.mark.parametrize("kind", ["relative", "link"])
def test_a_root_may_be_relative_or_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = Path("real") if kind == "relative" else tmp_path / "link"
    assert publish_partition(root, "p", score_rows(3), FACTS)
    assert row_ids(tmp_path / "real") == ["r0", "r1", "r2"]


@pytest.mark.parametrize("partition", ["../p", "/etc/p", "a/../../../p", "", "a/b"])
def test_a_partition_s_name_leads_nowhere_else(tmp_path: Path, partition: str) -> None:
    with pytest.raises(ConfigError):
        publish_partition(tmp_path / "scores", partition, score_rows(1), FACTS)
    assert files_below(tmp_path) == []


def broken(code: int) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def fail_at(call: int, function: Callable[..., Any], code: int) -> Callable[..., Any]:
    """`function`, but its `call`-th call fails."""
    calls = iter(range(1, 1_000))
    return lambda *arguments, **options: (
        broken(code)() if next(calls) == call else function(*arguments, **options)
    )


def half_a_table(table: pa.Table, file: IO[bytes], **_: Any) -> None:
    file.write(b"PAR1 and no more")
    broken(errno.ENOSPC)()


# all that touches the disk before the manifest has its name
FAULTS: dict[str, Callable[[int], tuple[Any, str, Any]]] = {
    "table": lambda code: (pq, "write_table", half_a_table),
    "table's sync": lambda code: (os, "fsync", fail_at(1, os.fsync, code)),
    "table's name": lambda code: (Path, "replace", broken(code)),
    "folder's sync": lambda code: (os, "fsync", fail_at(2, os.fsync, code)),
    "digest": lambda code: (commit, "bytes_sha256", broken(code)),
    "manifest": lambda code: (Path, "open", broken(code)),
    "manifest's sync": lambda code: (os, "fsync", fail_at(3, os.fsync, code)),
    "manifest's name": lambda code: (os, "link", broken(code)),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_write_shows_nothing_and_a_rerun_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int
) -> None:
    publish_partition(tmp_path, "before", score_rows(2, "before"), FACTS)
    files = files_below(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[fault](code))
        with pytest.raises(
            OSError, match=os.strerror(errno.ENOSPC) if fault == "table" else os.strerror(code)
        ):
            publish_partition(tmp_path, "p", score_rows(3), FACTS)
    assert files_below(tmp_path) == files
    assert not is_published(tmp_path, "p")
    assert row_ids(tmp_path) == ["before0", "before1"]
    assert publish_partition(tmp_path, "p", score_rows(3), FACTS) is True
    assert row_ids(tmp_path) == ["before0", "before1", "r0", "r1", "r2"]


def test_a_fault_after_the_manifest_has_its_name_keeps_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail_at(4, os.fsync, errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            publish_partition(tmp_path, "p", score_rows(3), FACTS)
    assert row_ids(tmp_path) == ["r0", "r1", "r2"]
    assert publish_partition(tmp_path, "p", score_rows(3), FACTS) is False


def test_an_interruption_is_no_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: bytes) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(commit, "bytes_sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_partition(tmp_path, "p", score_rows(3), FACTS)
    assert files_below(tmp_path) == []


def test_data_is_on_disk_under_its_name_before_the_manifest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, link = os.fsync, os.link

    def watched_sync(fd: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{fd}').resolve().suffix}")
        sync(fd)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(
        os,
        "link",
        lambda *paths: (seen.append(f"link {len(list(tmp_path.glob('data/p/*.parquet')))}"), link(*paths)),
    )
    publish_partition(tmp_path, "p", score_rows(3), FACTS)
    assert seen == ["sync .tmp", "sync ", "sync .tmp", "link 1", "sync "]


def test_of_threads_that_race_for_a_partition_one_wins_and_the_others_leave_nothing(tmp_path: Path) -> None:
    rounds, racers = 50, 3
    won: list[list[bool]] = [[] for _ in range(rounds)]
    gate = threading.Barrier(racers)

    def race(racer: int) -> None:
        for number in range(rounds):
            gate.wait()
            won[number].append(
                publish_partition(tmp_path, f"p{number}", score_rows(2, f"{racer}-{number}-"), FACTS)
            )

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(results) for results in won] == [[False, False, True]] * rounds
    assert len(files_below(tmp_path)) == 2 * rounds
    rows = row_ids(tmp_path)
    assert len(rows) == 2 * rounds and {row.split("-")[1] for row in rows} == {str(n) for n in range(rounds)}


PROCESS = """
import sys, time
from pathlib import Path
from pipeline.inference.labels import SCORE_SCHEMA
from pipeline.scoring.label_store import publish_partition
root, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
print(sum(publish_partition(root, f"p{n}", SCORE_SCHEMA.empty_table(), {}) for n in range(50)))
"""


def test_of_processes_that_race_for_fifty_partitions_one_wins_each(tmp_path: Path) -> None:
    import time

    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(time.time() + 1.5)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    won = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(won) == 50
    assert len(files_below(tmp_path)) == 100
    assert len(read_manifests(tmp_path)) == 50


def test_a_link_that_was_made_though_its_answer_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*paths: Any) -> None:
        link(*paths)
        raise FileExistsError

    link = os.link
    monkeypatch.setattr(os, "link", lost)
    assert publish_partition(tmp_path, "p", score_rows(3), FACTS) is True
    assert row_ids(tmp_path) == ["r0", "r1", "r2"] and len(files_below(tmp_path)) == 2


@pytest.mark.parametrize(
    "error", [RetryableError("no answer"), KeyboardInterrupt()], ids=["no answer", "interrupted"]
)
def test_a_manifest_that_may_still_appear_finds_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    late: list[tuple[Path, bytes]] = []

    def slow(path: Path, content: bytes) -> bool:
        late.append((path, content))
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(store_module, "put_if_absent", slow)
        publish_partition(tmp_path, "p", score_rows(3), FACTS)
    assert row_ids(tmp_path) == []
    ((path, content),) = late
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert row_ids(tmp_path) == ["r0", "r1", "r2"]


def test_put_if_absent_never_overwrites(tmp_path: Path) -> None:
    assert put_if_absent(tmp_path / "a" / "log.json", b"first") is True
    assert put_if_absent(tmp_path / "a" / "log.json", b"second") is False
    assert (tmp_path / "a" / "log.json").read_bytes() == b"first"
    assert files_below(tmp_path) == ["a/log.json"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_rows(path: Path) -> None:
    pq.write_table(score_rows(3, "forged"), path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip_a_byte,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "other rows": other_rows,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_published_file_that_was_altered_is_refused(tmp_path: Path, damage: str) -> None:
    publish_partition(tmp_path, "p", score_rows(3), FACTS)
    [path] = tmp_path.glob("data/p/*.parquet")
    DAMAGE[damage](path)
    with pytest.raises(
        DamagedInputError, match=r"does not match its manifest; delete manifests/p.json and score again"
    ):
        read_published(tmp_path)


def test_a_manifest_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p", score_rows(3), FACTS)
    path = tmp_path / "manifests" / "p.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedInputError, match="p.json is not whole json"):
        read_published(tmp_path)


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "scores"
    publish_partition(root, "p", score_rows(3), FACTS)
    [path] = root.glob("data/p/*.parquet")
    path.rename(tmp_path / "outside.parquet")
    manifest = root / "manifests" / "p.json"
    manifest.write_text(manifest.read_text().replace(str(path.relative_to(root)), "../outside.parquet"))
    with pytest.raises(ConfigError, match="leads out of"):
        read_published(root)


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_a_partition_s_id_moves_with_each_ingredient(ingredient: str) -> None:
    one = partition_id(PartitionSource(**INGREDIENTS))
    assert partition_id(PartitionSource(**INGREDIENTS)) == one
    assert partition_id(PartitionSource(**{**INGREDIENTS, ingredient: "other"})) != one


def test_ingredients_do_not_run_into_each_other() -> None:
    swapped = {
        **INGREDIENTS,
        "input_sha256": INGREDIENTS["bundle_sha256"],
        "bundle_sha256": INGREDIENTS["input_sha256"],
    }
    shifted = {**INGREDIENTS, "input_sha256": "12", "bundle_sha256": ""}
    assert len({partition_id(PartitionSource(**i)) for i in (INGREDIENTS, swapped, shifted)}) == 3


def test_ways_of_scoring_make_other_partitions_in_whatever_order_they_are_named() -> None:
    ids = [
        partition_id(PartitionSource(**INGREDIENTS), variants=ways)
        for ways in ((), ("a",), ("a", "b"), ("b", "a"))
    ]
    assert ids[0] == partition_id(PartitionSource(**INGREDIENTS)) and ids[2] == ids[3]
    assert len(set(ids)) == 3


def test_tasks_with_long_names_that_begin_alike_have_different_partitions() -> None:
    ids = [partition_id(PartitionSource(**{**INGREDIENTS, "task": "t" * 50 + end})) for end in ("a", "b")]
    assert ids[0] != ids[1]
    assert all(len(i) <= 63 for i in ids)


def test_bad_rows_that_a_killed_attempt_left_are_swept_where_another_attempt_had_none(tmp_path: Path) -> None:
    publish_partition(tmp_path, "p", score_rows(2), FACTS)
    (tmp_path / "errors" / "p").mkdir(parents=True)
    (tmp_path / "errors" / "p" / "stray.parquet").write_bytes(b"PAR1")
    assert sweep_orphans(tmp_path, older_than_s=-1) == 1 and row_ids(tmp_path) == ["r0", "r1"]
