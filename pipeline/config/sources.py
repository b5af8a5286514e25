"""What the config blocks of all sources share. A kind's own block stands with its importer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pipeline.config.extensions import RegisteredBlock, source_blocks
from pipeline.config.strict_model import Frozen
from pipeline.config.tasks import Task
from pipeline.errors import ConfigError
from pipeline.names import check_name


def checked_name(name: str, what: str) -> str:
    """`check_name` in the form pydantic reports."""
    try:
        return check_name(name, what)
    except ConfigError as error:
        raise ValueError(str(error)) from error


class SourceBlock(Frozen):
    """A source that a run can bring in. A subclass narrows `kind` to its own name."""

    kind: str

    @property
    def title(self) -> str:
        """What messages call the source."""
        return self.kind

    @property
    def published_as(self) -> tuple[str, str] | None:
        """(task, file name) that must be unique among the sources; None: no clash is possible."""
        return None

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise ValueError if the source does not fit the tasks of its config."""


class PathSource(SourceBlock):
    """A source that lies in a file or a folder."""

    path: Path  # file or folder, relative to where the command runs

    @property
    def title(self) -> str:
        return str(self.path)


Source = Annotated[SourceBlock, RegisteredBlock("kind", source_blocks)]


def check_sources(sources: Sequence[SourceBlock], tasks: Sequence[Task]) -> None:
    """ValueError: a source does not fit the tasks, or two of them would overwrite each other's rows."""
    seen: set[tuple[str, str]] = set()
    for source in sources:
        source.check(tasks)
        published = source.published_as
        if published in seen:
            task, name = published
            raise ValueError(f"two sources of task {task} are named {name}; give one of them another name")
        if published is not None:
            seen.add(published)
