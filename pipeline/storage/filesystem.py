"""Names, paths, hashes and writes that are whole or absent."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from models.files import bytes_sha256, synced
from pipeline.errors import ConfigError, DamagedInputError


def safe_join(root: Path, *parts: str) -> Path:
    """`root` joined with `parts`; ConfigError if the result, links followed, lies outside `root`."""
    try:
        # twice: after a link that leads to itself, a first pass drops `..` but leaves later links unfollowed
        path = root.joinpath(*parts).resolve().resolve()
    except (ValueError, RuntimeError) as error:  # a NUL, a link that leads to itself
        raise ConfigError(
            f"path {'/'.join(parts)!r} below {root} is no path ({error}); use a path inside it"
        ) from error
    if not path.is_relative_to(root.resolve()):
        raise ConfigError(f"path {'/'.join(parts)!r} leads out of {root}; use a path inside it")
    return path


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. What digests of json are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_sha256(value: Any) -> str:
    """Hex sha256 of the canonical json of `value`."""
    return bytes_sha256(canonical_json(value).encode())


def sync_dir(path: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the folder of `path`, on the same file system, so that a rename is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write in the place of `path`: readers see the old file or the new one, never a part; an
    error leaves the old one.
    """
    temporary = temporary_beside(path)
    try:
        with synced(temporary) as file:
            yield file
        temporary.replace(path)
        sync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def put_if_absent(path: Path, content: bytes) -> bool:
    """Create `path` whole with `content`; False and nothing changed if it exists. Of several at once exactly
    one gets True.
    """
    temporary = temporary_beside(path)
    try:
        with synced(temporary) as file:
            file.write(content)
        os.link(temporary, path)
    except FileExistsError:
        # over a network file system a link that was made may be asked for again, its first answer lost: then
        # it is there twice
        if temporary.stat().st_nlink < 2:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented json."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The json value in `path`; DamagedInputError if it is not whole json."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedInputError(
            f"{path} is not whole json ({error}); delete it and run the command that writes it again"
        ) from error


def publish_dir(staged: Path, final: Path) -> None:
    """Move a finished folder into place; an older folder of that name is replaced."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        retired = temporary_beside(final)
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
    """Delete a folder and all in it, or whatever else has the name, if anything does."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
