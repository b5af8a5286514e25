"""Safe paths, JSON digests and atomic writes on a file system."""

import json
import os
from pathlib import Path
from typing import Any

from models.files import atomic_writer, bytes_sha256, open_synced, sync_dir, temporary_path
from pipeline.errors import ConfigError, DamagedInputError


def safe_join(root: Path, *parts: str) -> Path:
    """Join `root` and `parts` and resolve symbolic links.

    Raises:
        ConfigError: The result lies outside `root` or is not a valid path.
    """
    try:
        # after a link to itself, the first pass drops `..` but leaves later links unresolved
        path = root.joinpath(*parts).resolve().resolve()
    except (ValueError, RuntimeError) as error:  # a NUL character, a link to itself
        raise ConfigError(
            f"path {'/'.join(parts)!r} below {root} is invalid ({error}); use a path inside it"
        ) from error
    if not path.is_relative_to(root.resolve()):
        raise ConfigError(f"path {'/'.join(parts)!r} lies outside {root}; use a path inside it")
    return path


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


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically."""
    with atomic_writer(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`.

    Raises:
        DamagedInputError: The file is not complete JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedInputError(
            f"{path} is not complete JSON ({error}); delete it and run the command that writes it again"
        ) from error
