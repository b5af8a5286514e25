"""Staging of the files of an import, and their publication in one step."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.files import remove_tree, sync_dir, temporary_path
from pipeline.data.catalog import (
    Partition,
    catalogue_lock,
    describe_partition,
    ensure_catalogue,
    logical_name,
    published_name,
    read_catalogue,
    write_catalogue,
)
from pipeline.data.data_files import PREFIX, QUARANTINE, SUFFIX, scan_folder
from pipeline.errors import ConfigError
from pipeline.names import check_name

_STAGED = "import"


class StagingFolder:
    """Hidden folder for the files of an import, beside the folders that they will be in.

    Use it as a context: what was not published is deleted at its end. The next import deletes what a killed
    one left.

    Args:
        out_dir: The data folder.
        stem: Beginning of the file names: the staged files are task=<name>/<stem>-<number>.parquet.

    Raises:
        ConfigError: `out_dir` is a file, or the stem breaks the name rule.
    """

    def __init__(self, out_dir: Path, stem: str = "part") -> None:
        if out_dir.exists() and not out_dir.is_dir():
            raise ConfigError(f"{out_dir} is not a folder; name a folder for task=<name>/{stem}-0.parquet")
        self.out_dir, self.stem = out_dir, check_name(stem, "source")
        self.dir = temporary_path(out_dir / _STAGED)

    def __enter__(self) -> "StagingFolder":
        self.dir.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        remove_tree(self.dir)

    def publish(self, extras: Sequence[str] = (), tasks: Collection[str] = ()) -> None:
        """Replace the files that earlier imports of the same stem wrote, task by task.

        Other tasks, files of other stems and files of other programs stay.

        Args:
            extras: Paths of further files, relative to both folders: moved if staged, else removed.
            tasks: Tasks whose earlier files are replaced although they have no staged file.
        """
        staged = {name: describe_partition(self.dir, name) for name in scan_folder(self.dir).names}
        published = {
            name: replace(partition, path=published_name(name, partition.sha256))
            for name, partition in staged.items()
        }
        replaced_tasks = {*tasks, *(partition.task for partition in published.values())}
        name = re.compile(rf"{re.escape(self.stem)}-\d+\.[0-9a-f]{{12}}\.parquet")

        def is_replaced(path: str) -> bool:
            folder, _, file_name = path.partition("/")
            return folder.removeprefix(PREFIX) in replaced_tasks and bool(name.fullmatch(file_name))

        self._publish(published, is_replaced, extras)

    def publish_folder(self, earlier: Collection[str]) -> None:
        """Publish the data folder that imports have made of this one, in place of the files `earlier`.

        Args:
            earlier: Paths that `list_imported` gave for earlier imports.
        """
        rejects = {path for path in (*list_imported(self.dir), *earlier) if path.startswith(f"{QUARANTINE}/")}
        self._publish(read_catalogue(self.dir) or {}, lambda path: path in earlier, sorted(rejects))

    def _publish(
        self, published: Mapping[str, Partition], is_replaced: Callable[[str], bool], extras: Sequence[str]
    ) -> None:
        """Move staged files, and replace the catalogue.

        Files get names that no other content has, so that the old ones stay whole until the catalogue,
        replaced in one step, lists the new ones. After an error the new ones are deleted.

        Args:
            published: Entries in the new catalogue by the path of the staged file.
            is_replaced: Returns True for the paths of files that are no longer listed, and deleted.
            extras: See `publish`.
        """
        with catalogue_lock(self.out_dir):
            entries = ensure_catalogue(self.out_dir)
            new_entries = {entry.path: entry for entry in published.values()}
            known = {*entries, *scan_folder(self.out_dir).names} - {*new_entries}
            replaced = {path for path in known if is_replaced(path)}
            try:
                for name, entry in published.items():
                    self._move(name, entry.path)
                _sync_folders(self.out_dir, new_entries)
                kept = {path: entry for path, entry in entries.items() if path not in replaced}
                write_catalogue(self.out_dir, kept | new_entries)
            except BaseException:
                self._delete_unlisted(new_entries)
                raise
            for name in extras:
                _replace_file(self.dir / name, self.out_dir / name)
            for path in sorted(replaced):
                (self.out_dir / path).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # other files are in it
                    (self.out_dir / path).parent.rmdir()

    def _move(self, staged: str, final: str) -> None:
        (self.out_dir / final).parent.mkdir(exist_ok=True)
        (self.dir / staged).replace(self.out_dir / final)

    def _delete_unlisted(self, paths: Iterable[str]) -> None:
        listed = read_catalogue(self.out_dir) or {}
        for path in paths:
            if path not in listed:
                (self.out_dir / path).unlink(missing_ok=True)


def list_imported(root: Path) -> list[str]:
    """Return the files that imports wrote into a data folder, rows and rejects, as paths below it."""
    rows = [path for path in read_catalogue(root) or {} if logical_name(path) != path]
    rejects = [f"{QUARANTINE}/{path.name}" for path in (root / QUARANTINE).glob(f"*{SUFFIX}")]
    return sorted([*rows, *rejects])


def _sync_folders(root: Path, paths: Iterable[str]) -> None:
    for folder in {root, *((root / path).parent for path in paths)}:
        sync_dir(folder)


def _replace_file(staged: Path, final: Path) -> None:
    """Move a staged file into place; if none was staged, remove the file of an earlier import."""
    if staged.exists():
        final.parent.mkdir(exist_ok=True)
        staged.replace(final)
        sync_dir(final.parent)
    else:
        final.unlink(missing_ok=True)
