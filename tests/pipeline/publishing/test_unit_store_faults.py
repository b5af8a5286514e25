"""Faults while a unit is published: nothing incomplete is visible, and a rerun publishes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RetryableError
from pipeline.publishing import unit_store
from pipeline.publishing.unit_store import is_published
from pipeline.storage import object_store as store_module
from tests.support.published_tables import publish_rows, published_rows
from tests.support.score_partitions import files_below


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


# every step that touches the disk before the manifest is visible
FAULTS: dict[str, Callable[[int], tuple[Any, str, Any]]] = {
    "table": lambda code: (pq, "write_table", half_a_table),
    "table's sync": lambda code: (os, "fsync", fail_at(1, os.fsync, code)),
    "table's name": lambda code: (Path, "replace", broken(code)),
    "folder's sync": lambda code: (os, "fsync", fail_at(2, os.fsync, code)),
    "digest": lambda code: (unit_store, "bytes_sha256", broken(code)),
    "manifest": lambda code: (Path, "open", broken(code)),
    "manifest's sync": lambda code: (os, "fsync", fail_at(3, os.fsync, code)),
    "manifest's name": lambda code: (os, "link", broken(code)),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_at_any_write_publishes_nothing_and_rerun_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int
) -> None:
    publish_rows(tmp_path, "before", 2, "before")
    files = files_below(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[fault](code))
        with pytest.raises(
            OSError, match=os.strerror(errno.ENOSPC) if fault == "table" else os.strerror(code)
        ):
            publish_rows(tmp_path, "p", 3)
    assert files_below(tmp_path) == files
    assert not is_published(tmp_path, "p")
    assert published_rows(tmp_path) == ["before0", "before1"]
    assert publish_rows(tmp_path, "p", 3) is True
    assert published_rows(tmp_path) == ["before0", "before1", "r0", "r1", "r2"]


def test_fault_after_the_manifest_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail_at(4, os.fsync, errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            publish_rows(tmp_path, "p", 3)
    assert published_rows(tmp_path) == ["r0", "r1", "r2"]
    assert publish_rows(tmp_path, "p", 3) is False


def test_interruption_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: bytes) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(unit_store, "bytes_sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_rows(tmp_path, "p", 3)
    assert files_below(tmp_path) == []


def test_tables_are_synced_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    sync, link = os.fsync, os.link

    def watched_sync(fd: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{fd}').resolve().suffix}")
        sync(fd)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(
        os,
        "link",
        lambda *paths: (seen.append(f"link {len(list(tmp_path.glob('rows/p/*.parquet')))}"), link(*paths)),
    )
    publish_rows(tmp_path, "p", 3)
    assert seen == ["sync .tmp", "sync ", "sync .tmp", "link 1", "sync "]


def test_link_with_a_lost_answer_counts_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*paths: Any) -> None:
        link(*paths)
        raise FileExistsError

    link = os.link
    monkeypatch.setattr(os, "link", lost)
    assert publish_rows(tmp_path, "p", 3) is True
    assert published_rows(tmp_path) == ["r0", "r1", "r2"] and len(files_below(tmp_path)) == 2


@pytest.mark.parametrize(
    "error", [RetryableError("no answer"), KeyboardInterrupt()], ids=["no answer", "interrupted"]
)
def test_late_manifest_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    late: list[tuple[Path, bytes]] = []

    def slow(path: Path, content: bytes) -> bool:
        late.append((path, content))
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(store_module, "put_if_absent", slow)
        publish_rows(tmp_path, "p", 3)
    assert published_rows(tmp_path) == []
    ((path, content),) = late
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert published_rows(tmp_path) == ["r0", "r1", "r2"]
