"""Extension points: tables of importers, behavioral tests, promotion rules and data checks.

An extension is one module that registers itself in the table of its kind. Modules of this project are found
by their package; modules of other distributions by the entry-point group `relevance.extensions`:

    [project.entry-points."relevance.extensions"]
    my_importer = "my_package.my_importer"

Adapter methods have their own table, `models.adapters.METHODS`, because models/ does not import pipeline/.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import Field, GetCoreSchemaHandler, SerializationInfo, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from models.adapters import METHODS, load_methods
from pipeline.errors import ConfigError
from pipeline.runtime.progress import ProgressBar, SilentBar

ENTRY_POINTS = "relevance.extensions"

Item = TypeVar("Item")


class ExtensionTable(Generic[Item]):
    """Named extensions of one kind, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def register(self, name: str, item: Item) -> Item:
        """Add an extension and return it; raise ValueError if the name is taken."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice; rename or uninstall one extension")
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._items)

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yield names and extensions in the order of registration."""
        yield from self._items.items()

    def values(self) -> Iterator[Item]:
        """Yield the extensions in the order of registration."""
        yield from self._items.values()


@dataclass(frozen=True)
class ImportContext:
    """Output folders of an import, and the parts of the run it may use."""

    # folder or s3://bucket/prefix of rows with labels: task=<name>/*.parquet
    judged_dir: Path | str
    data_dir: Path  # folder of the run's data: labeled rows and rows to score
    seed: int = 17
    # label names of each configured task, worst first; empty without a config
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bar: ProgressBar = field(default_factory=SilentBar)  # shows the number of rows written

    def labels_of(self, task: str) -> tuple[str, ...] | None:
        """Return the label names of a task, worst first; None without a config."""
        return self.labels.get(task)


@dataclass(frozen=True)
class Importer:
    """A kind of source: its config block and its import function."""

    block: type[Any]  # subclass of pipeline.config.sources.SourceBlock
    read: Callable[[Any, ImportContext], Any]  # (block, context) -> ImportCounts


IMPORTERS: ExtensionTable[Importer] = ExtensionTable("importer")
# items: Case of pipeline.evaluation.behavioral_tests
BEHAVIORAL_TESTS: ExtensionTable[Any] = ExtensionTable("behavioral test")
# items: Rule of pipeline.registry.promotion_gate
PROMOTION_RULES: ExtensionTable[Any] = ExtensionTable("promotion rule")
# items: CheckBuilder of validation.gate.expectations
DATA_CHECKS: ExtensionTable[Any] = ExtensionTable("data check")


def source_blocks() -> dict[str, type[Any]]:
    """Return the config blocks of all sources by kind."""
    load_importers()
    return {name: importer.block for name, importer in sorted(IMPORTERS.items())}


def method_blocks() -> dict[str, type[Any]]:
    """Return the config classes of all adapter methods by name; importing them needs torch.

    Raises:
        ConfigError: An installed extension cannot be imported.
    """
    load_methods()
    load_installed_extensions()
    return {name: method.config for name, method in sorted(METHODS.items())}


class RegisteredBlock:
    """Annotation of a setting that is one of several registered blocks.

    Args:
        tag: Name of the field that names the block.
        load_blocks: Returns the blocks by name. It is called when a config is validated, not when a config
            class is defined.
    """

    def __init__(self, tag: str, load_blocks: Callable[[], Mapping[str, type[Any]]]) -> None:
        self.tag, self.load_blocks = tag, load_blocks

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(self._serialize, info_arg=True)
        return core_schema.no_info_plain_validator_function(self._validate, serialization=serialization)

    def _validate(self, value: Any) -> Any:
        # members are known only at run time
        union: Any = Union[tuple(self.load_blocks().values())]  # noqa: UP007
        return TypeAdapter(Annotated[union, Field(discriminator=self.tag)]).validate_python(value)

    def _serialize(self, value: Any, info: SerializationInfo) -> Any:
        return TypeAdapter(type(value)).dump_python(value, mode="json" if info.mode_is_json() else "python")


def load_importers() -> None:
    """Fill the table of importers.

    Raises:
        ConfigError: An installed extension cannot be imported.
    """
    package = "pipeline.data.importers"
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
    load_installed_extensions()


def load_behavioral_tests() -> None:
    """Fill the table of behavioral tests.

    Raises:
        ConfigError: An installed extension cannot be imported.
    """
    importlib.import_module("pipeline.evaluation.behavioral_tests")
    load_installed_extensions()


@functools.cache
def load_installed_extensions() -> None:
    """Import the extensions of other distributions, once per process.

    Raises:
        ConfigError: An extension cannot be imported.
    """
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry_point.load()
        except Exception as error:
            raise ConfigError(
                f"extension {entry_point.name} ({entry_point.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}; repair or uninstall it"
            ) from error
