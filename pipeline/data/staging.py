"""Staging of the files of an import, and their publication in one step."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.files import remove_tree
from pipeline.data.catalog import (
    Partition,
    describe_partition,
    logical_name,
    published_name,
    read_catalogue,
)
from pipeline.data.data_files import PREFIX, QUARANTINE, scan_folder
from pipeline.data.import_places import open_import_place
from pipeline.names import check_name


class StagingFolder:
    """Folder for the files of an import: a hidden one beside the folders that they will be in, or a temporary
    one if they go to a bucket.

    Use it as a context: what was not published is deleted at its end. The next import deletes what a killed
    one left.

    Args:
        out_dir: The data place, a folder or a bucket.
        stem: Beginning of the file names: the staged files are task=<name>/<stem>-<number>.parquet.

    Raises:
        ConfigError: `out_dir` is a file, or the stem breaks the name rule.
    """

    def __init__(self, out_dir: Path | str, stem: str = "part") -> None:
        self._place = open_import_place(out_dir)
        self.stem = check_name(stem, "source")
        self.dir = self._place.staging_path()

    def __enter__(self) -> "StagingFolder":
        self._place.read_catalogue()  # a wrong account is refused before the work
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
        replaced in one step, lists the new ones. After an error the new ones are deleted, but in a bucket.

        Args:
            published: Entries in the new catalogue by the path of the staged file.
            is_replaced: Returns True for the paths of files that are no longer listed, and deleted.
            extras: See `publish`.
        """
        place = self._place
        with place.lock():
            entries = place.ensure_catalogue()
            new_entries = {entry.path: entry for entry in published.values()}
            known = {*entries, *place.names()} - {*new_entries}
            replaced = {path for path in known if is_replaced(path)}
            try:
                place.add({entry.path: self.dir / name for name, entry in published.items()})
                kept = {path: entry for path, entry in entries.items() if path not in replaced}
                place.write_catalogue(kept | new_entries)
            except BaseException:
                place.discard(new_entries)
                raise
            for name in extras:
                place.replace_extra(self.dir / name, name)
            for path in sorted(replaced):
                place.delete(path)


def list_imported(location: Path | str) -> list[str]:
    """Return the files that imports wrote into a data place, rows and rejects, as paths below it."""
    place = open_import_place(location)
    rows = [path for path in place.read_catalogue() or {} if logical_name(path) != path]
    return sorted([*rows, *place.reject_names()])
