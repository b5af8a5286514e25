"""Scores are published whole and once, and read back only as they were published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.inference.labels import SCORE_SCHEMA
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
from pipeline.storage.filesystem import write_json
from tests.support.score_partitions import FACTS, files_below, row_ids, score_rows

INGREDIENTS = {
    "task": "search",
    "input_path": "task=search/a.parquet",
    "input_sha256": "1",
    "bundle_sha256": "2",
    "encoder_version": "1",
}


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
