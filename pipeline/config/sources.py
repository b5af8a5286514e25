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
    def output_name(self) -> str:
        """Name of the rows that an import of this source replaces; no other source may have it."""
        return self.kind

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
    seen: dict[str, SourceBlock] = {}
    for source in sources:
        source.check(tasks)
        first = seen.setdefault(source.output_name, source)
        if first is not source:
            raise ValueError(
                f"rows of {source.title} would replace those of {first.title}: both are named "
                f"{source.output_name}; give one of them another name, or keep one"
            )
