"""Units are published completely and once, and are read back unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DamagedInputError
from pipeline.publishing.unit_store import (
    build_unit_id,
    is_published,
    list_published_units,
    split_rows,
    sweep_orphans,
)
from tests.support.published_tables import publish_rows, published_rows, row_table
from tests.support.score_partitions import files_below


def test_tables_of_published_units_are_read_back(tmp_path: Path) -> None:
    assert not is_published(tmp_path, "search-1") and list_published_units(tmp_path) == set()
    assert publish_rows(tmp_path, "search-1", 5, notes=2) is True
    assert is_published(tmp_path, "search-1") and list_published_units(tmp_path) == {"search-1"}
    assert published_rows(tmp_path) == ["r0", "r1", "r2", "r3", "r4"]
    assert published_rows(tmp_path, "notes") == ["note0", "note1"]


def test_second_publication_changes_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    publish_rows(tmp_path, "p", 5)
    before = {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    assert publish_rows(tmp_path, "p", 9, "other") is False
    assert {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)} == before


def test_file_without_manifest_is_never_read(tmp_path: Path) -> None:
    publish_rows(tmp_path, "p", 2)
    pq.write_table(row_table(7, "stray"), tmp_path / "rows" / "p" / "stray.parquet")
    (tmp_path / "manifests" / ".p2.json.123.tmp").write_text("{")
    assert published_rows(tmp_path) == ["r0", "r1"]


@pytest.mark.parametrize("kind", ["relative", "link"])
def test_root_may_be_relative_or_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = Path("real") if kind == "relative" else tmp_path / "link"
    assert publish_rows(root, "p", 3)
    assert published_rows(tmp_path / "real") == ["r0", "r1", "r2"]


@pytest.mark.parametrize("unit_id", ["../p", "/etc/p", "a/../../../p", "", "a/b"])
def test_unit_id_cannot_leave_the_store(tmp_path: Path, unit_id: str) -> None:
    with pytest.raises(ConfigError):
        publish_rows(tmp_path / "scores", unit_id, 1)
    assert files_below(tmp_path) == []


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_rows(path: Path) -> None:
    pq.write_table(row_table(3, "forged"), path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip_a_byte,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "other rows": other_rows,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_altered_published_file_is_refused(tmp_path: Path, damage: str) -> None:
    publish_rows(tmp_path, "p", 3)
    [path] = tmp_path.glob("rows/p/*.parquet")
    DAMAGE[damage](path)
    with pytest.raises(
        DamagedInputError, match=r"does not match its manifest; delete manifests/p.json and run"
    ):
        published_rows(tmp_path)


def test_truncated_manifest_is_refused(tmp_path: Path) -> None:
    publish_rows(tmp_path, "p", 3)
    path = tmp_path / "manifests" / "p.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedInputError, match="not valid JSON: .*p.json"):
        published_rows(tmp_path)


def test_manifest_cannot_point_outside_the_store(tmp_path: Path) -> None:
    root = tmp_path / "scores"
    publish_rows(root, "p", 3)
    [path] = root.glob("rows/p/*.parquet")
    path.rename(tmp_path / "outside.parquet")
    manifest = root / "manifests" / "p.json"
    manifest.write_text(manifest.read_text().replace(str(path.relative_to(root)), "../outside.parquet"))
    with pytest.raises(ConfigError, match="lies outside"):
        published_rows(root)


def test_files_that_no_manifest_names_are_removed_when_old(tmp_path: Path) -> None:
    folders = ("rows", "notes")
    publish_rows(tmp_path, "p", 2, notes=1)
    publish_rows(tmp_path, "q", 1, "q")
    for stray in ("rows/p/stray.parquet", "rows/r/.stray.parquet.1.tmp", "notes/q/stray.parquet"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"PAR1")
    assert sweep_orphans(tmp_path, folders) == 0
    assert sweep_orphans(tmp_path, folders, older_than_s=-1) == 3
    assert published_rows(tmp_path) == ["q0", "r0", "r1"] and len(files_below(tmp_path)) == 5
    assert sweep_orphans(tmp_path / "nowhere", folders, older_than_s=-1) == 0


@pytest.mark.parametrize("content", ["{}", '{"rows": [1]}', '{"rows": [{"sha256": "1"}]}', "{"])
def test_nothing_is_removed_beside_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    publish_rows(tmp_path, "p", 2)
    (tmp_path / "rows" / "p" / "stray.parquet").write_bytes(b"PAR1")
    (tmp_path / "manifests" / "p.json").write_text(content)
    before = files_below(tmp_path)
    with pytest.raises(DamagedInputError, match=r"manifests/p\.json"):
        sweep_orphans(tmp_path, ("rows",), older_than_s=-1)
    assert files_below(tmp_path) == before


def test_unit_ids_depend_on_name_and_identity() -> None:
    ids = [build_unit_id("t" * 50, {"a": 1}), build_unit_id("t" * 50, {"a": 2}), build_unit_id("t", {"a": 1})]
    assert len(set(ids)) == 3 and all(len(unit_id) <= 63 for unit_id in ids)


def test_ranges_cover_all_rows() -> None:
    assert split_rows(0, 4) == split_rows(4, 4) == [None]
    assert split_rows(9, 4) == [(0, 4), (4, 8), (8, 9)]
