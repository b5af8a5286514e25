"""Safe paths, JSON digests and atomic writes on a file system."""

import errno
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from models.files import (
    atomic_writer,
    bytes_sha256,
    file_sha256,
    open_synced,
    parse_json,
    sync_dir,
    temporary_path,
)
from pipeline.errors import WRONG_FIELDS, ConfigError, DamagedInputError, summarize_error

T = TypeVar("T")


def safe_join(root: Path, *parts: str, last_may_be_link: bool = False) -> Path:
    """Join `root` and `parts`, and follow no link below `root`.

    Raises:
        ConfigError: The result lies outside `root`, is not a valid path, or is a link or below one.
    """
    name, base = "/".join(parts), root.resolve()
    path = Path(os.path.normpath(base.joinpath(*parts)))
    if not path.is_relative_to(base):
        raise ConfigError(f"path {name!r} lies outside {root}; use a path inside it")
    if "\0" in name:
        raise ConfigError(f"path {name!r} below {root} holds a NUL character; use a path inside it")
    below = [entry for entry in (path, *path.parents) if entry != base and entry.is_relative_to(base)]
    # not Path.is_symlink: it fails for a name that is too long
    folders = below[1:] if last_may_be_link else below
    links = [entry for entry in folders if os.path.islink(entry)]  # noqa: PTH114
    if links:
        raise ConfigError(
            f"{links[-1]} is a symbolic link, and links inside {root} are not followed; "
            "replace it by what it links to, or use a path inside it without links; "
            f"{root} itself may be a link"
        )
    return path


def list_files(folder: Path) -> list[Path]:
    """Return the files and links below a folder, sorted; none if it does not exist. No link is followed.

    Raises:
        OSError: A folder cannot be listed. `Path.rglob` passes over such a folder as if it were empty.
    """
    found: list[Path] = []
    for directory, subfolders, names in os.walk(folder, onerror=_raise_unless_absent):
        links = [name for name in subfolders if Path(directory, name).is_symlink()]
        found += [Path(directory, name) for name in (*names, *links)]
    return sorted(found)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return values that change when a file is written or replaced; OSError if there is none."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def cached_sha256(path: Path) -> str:
    """Return the sha256 of a file, computed once per process as long as its stamp stays."""
    return _stamped_sha256(path, file_stamp(path))


@functools.lru_cache(maxsize=10_000)
def _stamped_sha256(path: Path, stamp: tuple[int, ...]) -> str:
    return file_sha256(path)


def canonical_json(value: Any) -> str:
    """Return the JSON text that digests are computed from: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(value: Any) -> str:
    """Return the hex SHA-256 of the canonical JSON of `value`."""
    return bytes_sha256(canonical_json(value).encode())


def put_if_absent(path: Path, content: bytes) -> bool:
    """Create `path` with `content`; return False and change nothing if it exists.

    Of several concurrent callers exactly one gets True.
    """
    temporary = temporary_path(path)
    try:
        with open_synced(temporary) as file:
            file.write(content)
        os.link(temporary, path)
    except FileExistsError:
        # a network file system may repeat a request whose answer was lost; a second link shows that it worked
        if temporary.stat().st_nlink < 2:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def open_to_append(path: Path) -> int:
    """Return a descriptor that appends to a file, which is created if it is absent.

    Raises:
        ConfigError: The path is a symbolic link.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigError(
            f"{path} is a symbolic link, and logs are not written through links; remove it"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically."""
    with atomic_writer(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented JSON atomically."""
    write_bytes(path, json_content(value))


def json_content(value: Any) -> bytes:
    """Return indented JSON, as files for people hold it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        DamagedInputError: The file holds no complete JSON object.
    """
    try:
        return parse_json_object(path.read_bytes())
    except ValueError as error:
        raise DamagedInputError(
            f"{path} is not complete JSON ({error}); delete it and run the command that writes it again"
        ) from error


def parse_json_object(content: bytes) -> dict[str, Any]:
    """Return the value of a JSON text; raise ValueError if it is not an object."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} in place of an object")
    return value


def read_json_as(path: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    """Return the JSON object in `path` as `parse` understands it.

    Raises:
        DamagedInputError: The file holds no complete JSON object, or not one of this kind.
    """
    fields = read_json(path)
    try:
        return parse(fields)
    except WRONG_FIELDS as error:
        raise DamagedInputError(
            f"{path} is incomplete or of another format ({summarize_error(error)}); delete it and run the "
            "command that writes it again"
        ) from error
