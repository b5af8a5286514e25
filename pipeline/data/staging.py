"""Staging of the files of an import, and their publication in one step."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.files import remove_tree, sync_dir, temporary_path
from pipeline.data.catalog import (
    Partition,
    catalogue_lock,
    describe_partition,
    ensure_catalogue,
    published_name,
    write_catalogue,
)
from pipeline.data.data_files import scan_folder
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

    def publish(self, extras: Sequence[str] = ()) -> None:
        """Replace the files of the same stem, task by task.

        Other tasks and files of other stems stay. Files get names that no other content has, so that the old
        ones stay whole until the catalogue, replaced in one step, lists the new ones.

        Args:
            extras: Paths of further files, relative to both folders: moved if staged, else removed.
        """
        staged = {name: describe_partition(self.dir, name) for name in scan_folder(self.dir).names}
        published = [
            replace(partition, path=published_name(name, partition.sha256))
            for name, partition in staged.items()
        ]
        with catalogue_lock(self.out_dir):
            entries = ensure_catalogue(self.out_dir)
            for name, partition in zip(staged, published, strict=True):
                self._move(name, partition.path)
            for name in extras:
                _replace_file(self.dir / name, self.out_dir / name)
            _sync_folders(self.out_dir, published)
            superseded = self._superseded(published)
            kept = {path: entry for path, entry in entries.items() if path not in superseded}
            write_catalogue(self.out_dir, kept | {entry.path: entry for entry in published})
            for path in sorted(superseded):
                (self.out_dir / path).unlink(missing_ok=True)

    def _move(self, staged: str, final: str) -> None:
        (self.out_dir / final).parent.mkdir(exist_ok=True)
        (self.dir / staged).replace(self.out_dir / final)

    def _superseded(self, published: Sequence[Partition]) -> set[str]:
        """Return the files that earlier imports of this stem left in the folders of these tasks."""
        name = re.compile(rf"{re.escape(self.stem)}-\d+(\.[0-9a-f]{{12}})?\.parquet")
        folders = {Path(entry.path).parent for entry in published}
        found = {
            str(folder / path.name)
            for folder in folders
            for path in (self.out_dir / folder).iterdir()
            if name.fullmatch(path.name)
        }
        return found - {entry.path for entry in published}


def _sync_folders(root: Path, published: Sequence[Partition]) -> None:
    for folder in {root, *((root / entry.path).parent for entry in published)}:
        sync_dir(folder)


def _replace_file(staged: Path, final: Path) -> None:
    """Move a staged file into place; if none was staged, remove the file of an earlier import."""
    if staged.exists():
        final.parent.mkdir(exist_ok=True)
        staged.replace(final)
        sync_dir(final.parent)
    else:
        final.unlink(missing_ok=True)
