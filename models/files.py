"""SHA-256 digests, strict JSON, durable writes and atomic replacement of files and folders.

Every package uses these functions. A file is complete on disk before it gets its final name.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from models.processes import has_ended, machine_id, process_start_s

ABANDONED_S = 7 * 24 * 3600.0  # no write takes this long

MAX_DIGITS = 300  # of an integer; longer ones are no floats

_TEMPORARY_NAME = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{6}\.tmp")


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """Return the hex SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes | str, allow_infinity: bool = False) -> Any:
    """Return the value of a JSON text; all JSON files that are believed are read by it.

    Args:
        content: The text.
        allow_infinity: Whether NaN and Infinity may be there, as in config.json of Mamba.

    Raises:
        ValueError: The text is not JSON in UTF-8, repeats a key, nests too deep, or holds a number that is
            not finite or a string that is not Unicode text.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeated_keys,
            parse_int=_short_int,
            parse_float=_finite_float,
            parse_constant=float if allow_infinity else _finite_float,
        )
        if "\\u" in text:  # only an escape can spell half a surrogate pair, which has no UTF-8
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in members if keys.count(key) > 1)!r} is repeated")
    return members


def _short_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text[:20]} is not finite")
    return number


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
    made it, and the leftovers of killed processes in the folder are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    pid = os.getpid()
    return path.parent / f".{path.name}.{_machine()}-{pid}-{_start(pid)}-{uuid.uuid4().hex[:6]}.tmp"


def is_temporary(path: Path) -> bool:
    """Return True for a name that `temporary_path` gives."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files and folders in `folder` that killed processes left.

    Leftovers from other machines, or from before a restart, are deleted when they are ABANDONED_S old.
    """
    for name in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208 - a path for each name is slow
        # a folder of many manifests is searched for each new one
        if name[0] == "." and (owner := _TEMPORARY_NAME.fullmatch(name)):
            entry = folder / name
            with contextlib.suppress(FileNotFoundError):  # another process may delete it at the same time
                if owner[1] == _machine():
                    is_abandoned = has_ended(int(owner[2]), int(owner[3]) / 100)
                else:
                    is_abandoned = entry.lstat().st_mtime < time.time() - ABANDONED_S
                if is_abandoned:
                    remove_tree(entry)


def _machine() -> str:
    """Return a short digest of the machine, for names."""
    return bytes_sha256(machine_id().encode())[:8]


@functools.lru_cache(1)
def _start(pid: int) -> int:
    """Return the start of this process, by its pid, in hundredths of a second, for names."""
    return round(100 * (process_start_s(pid) or 0.0))


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
