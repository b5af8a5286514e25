"""Index of manifests: only new ones are requested, and none is believed that is not published as it is."""

import json
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.errors import DamagedInputError
from pipeline.publishing.manifest_index import ManifestIndex
from pipeline.publishing.unit_store import Root, manifest_key
from pipeline.storage.object_store import Folder
from tests.support.memory_bucket import MemoryBucket
from tests.support.published_tables import publish_rows
from tests.support.score_partitions import files_below


def read(root: Root, unit_ids: Iterable[str]) -> list[int]:
    """Return the numbers of rows of units, sorted."""
    return sorted(
        ManifestIndex(root, "all").read(lambda manifest: int(manifest["rows"][0]["rows"]), list(unit_ids))
    )


def test_only_new_manifests_are_requested() -> None:
    bucket = MemoryBucket()
    for number in range(20):
        publish_rows(bucket, f"p{number}", number)
    assert read(bucket, (f"p{number}" for number in range(18))) == list(range(18))
    bucket.requests.clear()
    assert read(bucket, (f"p{number}" for number in range(20))) == list(range(20))
    assert bucket.requested("get", "manifests/") == 2
    bucket.requests.clear()
    assert read(bucket, (f"p{number}" for number in range(20))) == list(range(20))
    assert bucket.requested("get", "manifests/") == 0 and len(bucket.requests) == 3


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_unit_published_anew_is_read_again(tmp_path: Path, kind: str) -> None:
    store = Folder(tmp_path) if kind == "folder" else MemoryBucket()
    publish_rows(store, "p", 3)
    assert read(store, ["p"]) == [3]
    store.delete(manifest_key("p"))
    with pytest.raises(DamagedInputError, match=r"file is missing: .*manifests/p\.json"):
        read(store, ["p"])
    publish_rows(store, "p", 4)
    assert read(store, ["p"]) == [4] and read(store, ["p"]) == [4]


def test_lost_or_torn_index_is_built_anew(tmp_path: Path) -> None:
    for number in range(3):
        publish_rows(tmp_path, f"p{number}", number)
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:50])):
        assert read(tmp_path, ["p0", "p1", "p2"]) == [0, 1, 2]
        [name] = [name for name in files_below(tmp_path) if name.startswith("cache/")]
        damage(tmp_path / name)
        assert read(tmp_path, ["p0", "p1", "p2"]) == [0, 1, 2]
    assert len([name for name in files_below(tmp_path) if name.startswith("cache/")]) == 1


def test_entry_of_another_kind_is_read_from_its_manifest(tmp_path: Path) -> None:
    publish_rows(tmp_path, "p", 3)
    assert list(ManifestIndex(tmp_path, "all").read(lambda manifest: 1, ["p"])) == [1]
    [(unit_id, fields)] = ManifestIndex(tmp_path, "all").read_known(lambda manifest: manifest, ["p"])
    assert unit_id == "p" and fields == json.loads((tmp_path / manifest_key("p")).read_text())
    refused = iter([True, False])

    def parse(manifest: object) -> str:
        if next(refused):
            raise KeyError("rows")
        return "read"

    assert list(ManifestIndex(tmp_path, "all").read(parse, ["p"])) == ["read"]


def test_readers_at_once_get_every_manifest(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(12)]
    for number, name in enumerate(names):
        publish_rows(tmp_path, name, number)
    start, found = threading.Barrier(4), []

    def look(number: int) -> None:
        start.wait()
        for last in range(number, 13):
            found.append(read(tmp_path, names[:last]) == list(range(last)))

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found) and len(found) == 13 + 12 + 11 + 10
