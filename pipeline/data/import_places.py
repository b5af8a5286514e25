"""Places that imports publish rows into: a folder, or a prefix of a bucket."""

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from models.files import sync_dir, temporary_path
from pipeline.data.catalog import (
    Partition,
    catalogue_content,
    catalogue_lock,
    describe_partition,
    parse_catalogue,
    read_catalogue,
    write_catalogue,
)
from pipeline.data.data_files import CATALOGUE, QUARANTINE, SUFFIX, scan_folder, sort_names, task_of
from pipeline.data.row_files import RowFile, open_copy
from pipeline.errors import ConfigError
from pipeline.names import is_bucket
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.lease import Lease
from pipeline.storage.object_store import open_bucket

_STAGED = "import"


class ImportPlace(ABC):
    """Data place that imports publish into. `location` is its path or URL."""

    location: str

    @abstractmethod
    def staging_path(self) -> Path:
        """Return an unused path for a folder that is deleted when its process ends."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[object]:
        """Let one import at a time publish; RetryableError if another one does not end."""

    @abstractmethod
    def read_catalogue(self) -> dict[str, Partition] | None:
        """Return the listed files by name; None without a catalogue."""

    @abstractmethod
    def write_catalogue(self, entries: Mapping[str, Partition]) -> None:
        """Replace the catalogue in one step. The caller holds the lock."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files of rows, listed or not; none if the place does not exist."""

    @abstractmethod
    def describe(self, name: str) -> Partition:
        """Return the catalogue entry of a file that is there."""

    @abstractmethod
    def add(self, staged: Mapping[str, Path]) -> None:
        """Move staged files of rows to the place, by name; they are durable on return."""

    @abstractmethod
    def replace_extra(self, staged: Path, name: str) -> None:
        """Move another staged file to the place; delete the earlier one if none was staged."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

    @abstractmethod
    def discard(self, names: Iterable[str]) -> None:
        """Delete those of the added files that the catalogue does not list, after an error."""

    @abstractmethod
    def reject_names(self) -> list[str]:
        """Return the names of the files of rejects."""

    def ensure_catalogue(self) -> dict[str, Partition]:
        """Return the catalogue; without one, write one of the files that are there.

        The caller holds the lock.
        """
        entries = self.read_catalogue()
        if entries is None:
            entries = {name: self.describe(name) for name in self.names()}
            self.write_catalogue(entries)
        return entries


class ImportFolder(ImportPlace):
    """Folder that imports publish into; ConfigError if it is a file."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{root} is not a folder; name a folder for task=<name>/*.parquet")
        self.root, self.location = root, str(root)

    def staging_path(self) -> Path:
        return temporary_path(self.root / _STAGED)

    def lock(self) -> AbstractContextManager[object]:
        return catalogue_lock(self.root)

    def read_catalogue(self) -> dict[str, Partition] | None:
        return read_catalogue(self.root)

    def write_catalogue(self, entries: Mapping[str, Partition]) -> None:
        write_catalogue(self.root, entries)

    def names(self) -> list[str]:
        return scan_folder(self.root).names if self.root.is_dir() else []

    def describe(self, name: str) -> Partition:
        return describe_partition(self.root, name)

    def add(self, staged: Mapping[str, Path]) -> None:
        for name, path in staged.items():
            (self.root / name).parent.mkdir(exist_ok=True)
            path.replace(self.root / name)
        _sync_folders(self.root, staged)

    def replace_extra(self, staged: Path, name: str) -> None:
        final = self.root / name
        if staged.exists():
            final.parent.mkdir(exist_ok=True)
            staged.replace(final)
            sync_dir(final.parent)
        else:
            final.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are in it
            (self.root / name).parent.rmdir()

    def discard(self, names: Iterable[str]) -> None:
        listed = read_catalogue(self.root) or {}
        for name in names:
            if name not in listed:
                (self.root / name).unlink(missing_ok=True)

    def reject_names(self) -> list[str]:
        return [f"{QUARANTINE}/{path.name}" for path in (self.root / QUARANTINE).glob(f"*{SUFFIX}")]


class ImportBucket(ImportPlace):
    """Prefix of a bucket that imports publish into.

    Files are staged in the system's folder of temporary files. Readers pass over objects of an import that
    are not in the catalogue yet (`find_objects`), so no lock is needed for them.
    """

    def __init__(self, url: str) -> None:
        self._bucket = open_bucket(url)
        self.location = self._bucket.location
        # named like the lock of a folder, so that readers pass over its file
        self._lease = Lease(open_bucket(f"{self.location}/.{CATALOGUE}.lock"))

    def staging_path(self) -> Path:
        folder = Path(tempfile.gettempdir(), f"relevance-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise ConfigError(f"{folder} is of another user; set TMPDIR to a folder of your own")
        return temporary_path(folder / _STAGED)

    def lock(self) -> AbstractContextManager[object]:
        return self._lease

    def read_catalogue(self) -> dict[str, Partition] | None:
        try:
            content = self._bucket.get(CATALOGUE)
        except FileNotFoundError:
            return None
        return parse_catalogue(content, f"{self.location}/{CATALOGUE}")

    def write_catalogue(self, entries: Mapping[str, Partition]) -> None:
        self._lease.check()
        self._bucket.put(CATALOGUE, catalogue_content(entries))

    def names(self) -> list[str]:
        return sort_names((entry.key for entry in self._bucket.list("")), lambda _: False).names

    def describe(self, name: str) -> Partition:
        entry = self._bucket.head(name)
        with open_copy(RowFile(self.location, name, entry.version, entry.size)) as (file, sha256):
            return Partition(name, task_of(name), file.num_rows, entry.size, sha256, SCHEMA_VERSION)

    def add(self, staged: Mapping[str, Path]) -> None:
        for name, path in staged.items():
            self._bucket.put_file(name, path)

    def replace_extra(self, staged: Path, name: str) -> None:
        if staged.exists():
            self._bucket.put_file(name, staged)
        else:
            self._bucket.delete(name)

    def delete(self, name: str) -> None:
        self._bucket.delete(name)

    def discard(self, names: Iterable[str]) -> None:
        """Keep all: a request whose answer was lost may list them yet. The next import deletes them."""

    def reject_names(self) -> list[str]:
        return [entry.key for entry in self._bucket.list(QUARANTINE) if entry.key.endswith(SUFFIX)]


def open_import_place(location: Path | str) -> ImportPlace:
    """Return the place in a folder or at s3://bucket/prefix, which need not exist yet."""
    return ImportBucket(str(location)) if is_bucket(location) else ImportFolder(Path(location))


def _sync_folders(root: Path, names: Iterable[str]) -> None:
    for folder in {root, *((root / name).parent for name in names)}:
        sync_dir(folder)
