"""SHA-256 digests, durable writes and atomic replacement of files and folders.

Every package uses these functions. A file is complete on disk before it gets its final name.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ABANDONED_S = 7 * 24 * 3600.0  # no write takes this long


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """Return the hex SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add `path` to system errors that name no file, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def open_synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing; its content is on disk when the context ends."""
    with name_file_in_errors(path), path.open("xb") as file:
        yield file
        sync_file(file)


def sync_file(file: IO[bytes]) -> None:
    """Wait until the content written so far is on disk."""
    file.flush()
    os.fsync(file.fileno())


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with open_synced(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_writer(path: Path, sync_folder: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the context ends.

    Readers see the old file or the whole new one. After an error the old file stays.

    Args:
        path: The file to replace.
        sync_folder: Whether to sync the folder; False if others may rename it as soon as the file is there.
    """
    temporary = temporary_path(path)
    try:
        with open_synced(temporary) as file:
            yield file
        temporary.replace(path)
        if sync_folder:
            sync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return an unused hidden name beside `path`; create the folder.

    Both names are on one file system, so a rename between them is atomic. The name contains the process that
    made it, and the leftovers of killed processes beside the same `path` are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{_start_ticks(pid)}"
    return path.parent / f".{path.name}.{owner}-{uuid.uuid4().hex[:6]}.tmp"


def remove_abandoned(path: Path) -> None:
    """Delete the temporary files and folders of `path` that killed processes left.

    Leftovers from other machines are deleted when they are ABANDONED_S old.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]{{6}}\.tmp")
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        if owner := name.fullmatch(entry.name):
            with contextlib.suppress(FileNotFoundError):  # another process may delete it at the same time
                if owner[1] == _host():
                    has_ended = _start_ticks(int(owner[2])) != int(owner[3])
                else:
                    has_ended = entry.lstat().st_mtime < time.time() - ABANDONED_S
                if has_ended:
                    remove_tree(entry)


@functools.cache
def _host() -> str:
    """Return a short digest that distinguishes machines and containers that share a file system."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        # containers may share the host's name, but then have process numbers of their own
        name += os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    return bytes_sha256(name.encode())[:8]


def _start_ticks(pid: int) -> int:
    """Return the start time of a process of this machine in clock ticks, 0 if it is unknown.

    It distinguishes processes that had the same pid one after the other.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            # the fields follow the command's name, which is in parentheses and may hold any character
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError):
        return 0


def retire_dir(path: Path) -> None:
    """Delete a folder atomically: readers see all of it or nothing."""
    if os.path.lexists(path):
        retired = temporary_path(path)
        path.rename(retired)
        remove_tree(retired)


def sync_dir(path: Path) -> None:
    """Flush the entries of a folder to disk, so that renames survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until the files and folders in `folder`, written by other code, are on disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        if path.is_dir():
            sync_dir(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def publish_dir(staged: Path, final: Path) -> None:
    """Rename a finished folder to `final`; replace an older folder there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(final):
        retired = temporary_path(final)
        final.rename(retired)
        try:
            staged.rename(final)
        except OSError:
            retired.rename(final)
            raise
        remove_tree(retired)
    else:
        staged.rename(final)
    sync_dir(final.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder with its content, or a file; do nothing if `path` does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
