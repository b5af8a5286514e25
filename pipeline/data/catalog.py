"""Catalogue of a data folder: catalogue.json lists the files that imports wrote, with their sha256.

A data folder with a catalogue holds exactly the listed files. Replacing the catalogue publishes all files of
an import at once. A folder without one, such as Spark writes, is read whole.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from models.files import parse_json
from pipeline.data.data_files import CATALOGUE, DataFiles, list_some, scan_folder, task_of
from pipeline.data.parquet_batches import NOT_PARQUET, translate_read_errors
from pipeline.errors import DamagedInputError, DataRefusedError, RelevanceError, RetryableError
from pipeline.runtime.waiting import announce_wait
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.filesystem import cached_sha256, json_content, write_bytes

LOCK_TIMEOUT_S = 60  # a holder only moves and hashes files that are already written

# <stem>-<number>.<first digits of the content's sha256>.parquet
_PUBLISHED_NAME = re.compile(r"(.*-\d+)\.[0-9a-f]{12}(\.parquet)")


@dataclass(frozen=True)
class Partition:
    """Catalogue entry of one parquet file in a data folder."""

    path: str  # relative to the data folder
    task: str
    rows: int
    bytes: int
    sha256: str
    schema_version: str


def published_name(name: str, sha256: str) -> str:
    """Return the name of an imported file: no two contents have the same."""
    return f"{name.removesuffix('.parquet')}.{sha256[:12]}.parquet"


def logical_name(path: str) -> str:
    """Return a path without the digest that `published_name` adds; other paths as they are."""
    match = _PUBLISHED_NAME.fullmatch(path)
    return match[1] + match[2] if match else path


def describe_partition(root: Path, name: str) -> Partition:
    """Return the catalogue entry of the file `name` below `root`.

    Raises:
        DamagedInputError: The file is not whole parquet.
    """
    path = root / name
    with translate_read_errors(path, NOT_PARQUET):
        if not path.is_file():
            raise OSError("not a file")
        num_rows = pq.read_metadata(path).num_rows
    return Partition(
        path=name,
        task=task_of(name),
        rows=num_rows,
        bytes=path.stat().st_size,
        sha256=cached_sha256(path),
        schema_version=SCHEMA_VERSION,
    )


def read_catalogue(root: Path) -> dict[str, Partition] | None:
    """Return the files of the data folder `root` by path; None without a catalogue.

    Raises:
        DamagedInputError: The file is not a catalogue, or not a file: behind a link that leads nowhere all
            files would be read unverified.
    """
    path = root / CATALOGUE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DamagedInputError(
            f"{path} is a symbolic link or no file; put the catalogue itself there, or delete it, and all "
            "files are read as they are"
        )
    try:
        return parse_catalogue(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def parse_catalogue(content: bytes, where: str) -> dict[str, Partition]:
    """Return the files that a catalogue lists, by path; DamagedInputError if it is none."""
    try:
        partitions = [Partition(**entry) for entry in parse_json(content)["partitions"]]
        return {partition.path: partition for partition in partitions}
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedInputError(
            f"{where} is not a catalogue of partitions ({error}); delete it and import again"
        ) from error


def write_catalogue(root: Path, entries: Mapping[str, Partition]) -> None:
    """Replace the catalogue. The caller holds `catalogue_lock`."""
    write_bytes(root / CATALOGUE, catalogue_content(entries))


def catalogue_content(entries: Mapping[str, Partition]) -> bytes:
    """Return the content of a catalogue."""
    return json_content({"partitions": [asdict(entries[path]) for path in sorted(entries)]})


@contextlib.contextmanager
def catalogue_lock(root: Path) -> Iterator[None]:
    """Let one import at a time move files into `root`.

    Raises:
        RetryableError: Another import holds the lock for LOCK_TIMEOUT_S.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{CATALOGUE}.lock", timeout=LOCK_TIMEOUT_S)
    try:
        with announce_wait(f"another import into {root} to end"):
            lock.acquire()
    except Timeout as error:
        raise RetryableError(
            f"another import is writing into {root}; wait for it and run the same command again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def find_files(root: Path, sha256: Callable[[Path], str] = cached_sha256) -> DataFiles:
    """Find the files of a data folder; with a catalogue they must be those that it lists.

    Args:
        root: The data folder.
        sha256: Returns the digest of a file.

    Raises:
        DamagedInputError: A listed file is missing or has another content.
        DataRefusedError: A file is not listed.
        RetryableError: An import does not end.
    """
    files = scan_folder(root)
    if _find_difference(root, files, sha256):
        _wait_for_import(root)
        files = scan_folder(root)
        if difference := _find_difference(root, files, sha256):
            raise difference
    return files


def _wait_for_import(root: Path) -> None:
    """Wait until no import moves files into `root`; do not wait in a folder that cannot be written."""
    with contextlib.suppress(OSError), catalogue_lock(root):
        pass


def _find_difference(root: Path, files: DataFiles, sha256: Callable[[Path], str]) -> RelevanceError | None:
    """Return the error if the files below `root` are not those of its catalogue; None if they are."""
    entries = read_catalogue(root)
    if entries is None:
        return None
    try:
        sizes = {name: (root / name).stat().st_size for name in files.names}
        return check_names(entries, sizes, str(root)) or _check_contents(root, entries, sha256)
    except FileNotFoundError as error:  # removed meanwhile
        return DamagedInputError(
            _message("files of the catalogue are missing", [str(error.filename)], str(root))
        )


def check_names(
    entries: Mapping[str, Partition], sizes: Mapping[str, int], where: str
) -> RelevanceError | None:
    """Return the error if a data place has other files than its catalogue lists, or of other sizes."""
    if unlisted := sorted({*sizes} - {*entries}):
        return DataRefusedError(_message("files are not in the catalogue", unlisted, where))
    if missing := sorted({*entries} - {*sizes}):
        return DamagedInputError(_message("files of the catalogue are missing", missing, where))
    if changed := [name for name in sizes if entries[name].bytes != sizes[name]]:
        return content_differs(changed, where)
    return None


def _check_contents(
    root: Path, entries: Mapping[str, Partition], sha256: Callable[[Path], str]
) -> DamagedInputError | None:
    changed = [name for name, entry in entries.items() if sha256(root / name) != entry.sha256]
    return content_differs(changed, str(root)) if changed else None


def content_differs(names: Sequence[str], where: str) -> DamagedInputError:
    """Return the error for files that do not have the content that the catalogue of a data place lists."""
    return DamagedInputError(_message("files differ from the catalogue", names, where))


def _message(problem: str, names: Sequence[str], where: str) -> str:
    return (
        f"{problem}: {list_some(names)} in {where}; if an import was interrupted or its files "
        f"changed, run the same import again; for files of your own, delete {where}/{CATALOGUE}, and all "
        "files are read as they are"
    )
