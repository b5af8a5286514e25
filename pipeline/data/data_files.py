"""Files of a data place: those that hold rows of a task, and those that are not read.

task=<name>/**/<file>      read if it ends in .parquet (in any case), or has no suffix and parquet inside
.<name>, _<name>            not read, as Spark and Arrow do, and named; ignored without a word are Spark's
                           markers (_SUCCESS), Hadoop's checksums (.<name>.crc), and this project's
                           temporary files and locks (.<name>.tmp, .<name>.lock)
catalogue.json             of imports: ignored, and with it the rejects in quarantine/
everything else            not read, and named
"""

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "task="

SUFFIX = ".parquet"

MAGIC = b"PAR1"  # first bytes of a parquet file

QUARANTINE = "quarantine"  # rejects of imports

CATALOGUE = "catalogue.json"  # of imports; pipeline/data/catalog.py

BOOKKEEPING = (  # of writers: no rows
    "_SUCCESS",
    "_metadata",
    "_common_metadata",
    "_started_*",
    "_committed_*",
    ".*.crc",
    ".*.tmp",
    ".*.lock",
)

NUM_LISTED = 5  # files in a message


@dataclass(frozen=True)
class DataFiles:
    """Files of a data place, as paths below it."""

    by_task: dict[str, list[str]]  # read, sorted
    skipped: tuple[str, ...]  # not read: files, and folders that are no task's

    @property
    def names(self) -> list[str]:
        """All files that are read."""
        return [name for names in self.by_task.values() for name in names]

    def describe_skipped(self, where: str) -> str:
        """Return a sentence about the files that are not read; empty if there are none."""
        if not self.skipped:
            return ""
        return (
            f"{len(self.skipped):,} entries of {where} are not read: {list_some(self.skipped)}; "
            "rows are parquet files below task=<name>/"
        )


def list_some(names: Sequence[str], limit: int = NUM_LISTED) -> str:
    """Return the first names for a message, and how many follow."""
    rest = [f"and {len(names) - limit:,} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *rest])


def task_of(name: str) -> str:
    """Return the task of a file that is read."""
    return name.partition("/")[0].removeprefix(PREFIX)


def scan_folder(root: Path) -> DataFiles:
    """Find the files of a data folder, at any depth; links are followed."""
    return sort_names(_walk(root, "", ()), lambda name: _begins_as_parquet(root / name))


def sort_names(names: Iterable[str], is_parquet: Callable[[str], bool]) -> DataFiles:
    """Sort the names of all files of a data place into those that are read and those that are not.

    Args:
        names: Paths below the place, with slashes.
        is_parquet: Looks into a file without the suffix.
    """
    by_task: dict[str, list[str]] = {}
    skipped: dict[str, None] = {}
    paths = sorted(tuple(name.split("/")) for name in names)
    of_imports = {CATALOGUE, QUARANTINE} if (CATALOGUE,) in paths else set()
    for parts in paths:
        name, is_of_task = "/".join(parts), len(parts) > 1 and parts[0].startswith(PREFIX)
        if parts[0] in of_imports or any(map(is_bookkeeping, parts)):
            continue
        if not is_of_task:
            skipped[parts[0] if len(parts) == 1 else f"{parts[0]}/"] = None
        elif any(part.startswith((".", "_")) for part in parts):
            skipped[name] = None
        elif name.lower().endswith(SUFFIX) or ("." not in parts[-1] and is_parquet(name)):
            by_task.setdefault(task_of(name), []).append(name)
        else:
            skipped[name] = None
    return DataFiles(by_task, tuple(skipped))


def is_bookkeeping(name: str) -> bool:
    """Return whether a file or folder holds no rows, by its name: writers leave it beside theirs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in BOOKKEEPING)


def _walk(root: Path, below: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the entries of a folder: files, and with a slash the folders that are not entered."""
    state = (root / below).stat()
    if (key := (state.st_dev, state.st_ino)) in ancestors:  # a link to a folder above
        yield below
        return
    with os.scandir(root / below) as scanned:
        entries = [entry for entry in scanned if not is_bookkeeping(entry.name)]
    if not entries and below.lower().endswith(f"{SUFFIX}/"):
        yield below.removesuffix("/")  # no file, and not a folder of files either
    for entry in entries:
        name = f"{below}{entry.name}"
        if not entry.is_dir():
            yield name
        elif (below and not entry.name.startswith(".")) or entry.name.startswith(PREFIX):
            yield from _walk(root, f"{name}/", (*ancestors, key))
        else:
            yield f"{name}/"


def _begins_as_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
