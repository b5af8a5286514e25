"""Base classes of the config blocks of sources; each importer module defines its own block."""

from collections.abc import Sequence
from typing import Annotated

from pipeline.config.extensions import RegisteredBlock, source_blocks
from pipeline.config.paths import InputPath
from pipeline.config.strict_model import StrictModel
from pipeline.config.tasks import Task


class SourceBlock(StrictModel):
    """A data set that a run imports. Subclasses narrow `kind` to their own name."""

    kind: str

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return self.kind

    @property
    def output_file(self) -> tuple[str, str] | None:
        """Task and file name that no other source may have; None if no clash is possible."""
        return None

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise ValueError if the source does not fit the tasks of its config."""


class PathSource(SourceBlock):
    """A source in a file or a folder."""

    path: InputPath  # file or folder; relative paths start at the working directory

    @property
    def title(self) -> str:
        return str(self.path)


Source = Annotated[SourceBlock, RegisteredBlock("kind", source_blocks)]


def check_sources(sources: Sequence[SourceBlock], tasks: Sequence[Task]) -> None:
    """Check every source against the tasks and against the other sources.

    Raises:
        ValueError: A source does not fit the tasks, or two sources would overwrite each other's rows.
    """
    seen: set[tuple[str, str]] = set()
    for source in sources:
        source.check(tasks)
        if source.output_file is None:
            continue
        if source.output_file in seen:
            task, name = source.output_file
            raise ValueError(f"two sources of task {task} are named {name}; give one of them another name")
        seen.add(source.output_file)
