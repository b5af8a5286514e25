"""Extension points: tables of importers, behavioural tests, promotion rules and data checks.

An extension is one module that registers itself in the table of its kind. Modules of this project are found
by their package; modules of other distributions by the entry-point group `relevance.extensions`:

    [project.entry-points."relevance.extensions"]
    my_importer = "my_package.my_importer"

Adapter methods have their own table, `models.adapters.METHODS`, since models/ knows nothing of pipeline/.
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

ENTRY_POINTS = "relevance.extensions"

Item = TypeVar("Item")


class ExtensionTable(Generic[Item]):
    """Named extensions of one kind, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def register(self, name: str, item: Item) -> Item:
        """Add an extension. ValueError: another one has the name."""
        if name in self._items:
            raise ValueError(f"two extensions register {self.kind} {name!r}; rename or uninstall one")
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
    """Where an import writes, and what it knows of the run."""

    judged_dir: Path  # rows with labels go to task=<name>/*.parquet below it
    data_dir: Path  # of the run: judged rows and rows to score that belong together
    seed: int = 17
    # labels of each task of the config, worst first; empty where an import has no config
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    on_rows: Callable[[int], None] = lambda rows: None  # gets the number of rows read so far

    def labels_of(self, task: str) -> tuple[str, ...] | None:
        """Return the labels of a task, worst first; None: no config is known."""
        return self.labels.get(task)


@dataclass(frozen=True)
class Importer:
    """A kind of source: its config block, and the function that turns a source into contract rows."""

    block: type[Any]  # a subclass of pipeline.config.sources.SourceBlock
    read: Callable[[Any, ImportContext], Any]  # (block, target) -> ImportCounts


IMPORTERS: ExtensionTable[Importer] = ExtensionTable("importer")
# items: Case of pipeline.evaluation.behavioral_tests
BEHAVIORAL_TESTS: ExtensionTable[Any] = ExtensionTable("behavioural test")
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

    ConfigError: an installed extension cannot be imported.
    """
    load_methods()
    load_installed_extensions()
    return {name: method.config for name, method in sorted(METHODS.items())}


class RegisteredBlock:
    """Annotation of a setting that is one of several registered blocks, which its tag names.

    `blocks` loads and returns them by name. It is asked when such a setting is given, not when a config class
    is defined.
    """

    def __init__(self, tag: str, blocks: Callable[[], Mapping[str, type[Any]]]) -> None:
        self.tag, self.blocks = tag, blocks

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(self._serialize, info_arg=True)
        return core_schema.no_info_plain_validator_function(self._validate, serialization=serialization)

    def _validate(self, value: Any) -> Any:
        union: Any = Union[tuple(self.blocks().values())]  # noqa: UP007, the members are known only now
        return TypeAdapter(Annotated[union, Field(discriminator=self.tag)]).validate_python(value)

    def _serialize(self, value: Any, info: SerializationInfo) -> Any:
        return TypeAdapter(type(value)).dump_python(value, mode="json" if info.mode_is_json() else "python")


def load_importers() -> None:
    """Fill the table of importers. ConfigError: an installed extension cannot be imported."""
    package = "pipeline.data.importers"
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
    load_installed_extensions()


def load_behavioral_tests() -> None:
    """Fill the table of behavioural tests. ConfigError: as above."""
    importlib.import_module("pipeline.evaluation.behavioral_tests")
    load_installed_extensions()


@functools.cache
def load_installed_extensions() -> None:
    """Import the extensions of other distributions, once for each process.

    ConfigError: one cannot be imported.
    """
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry_point.load()
        except Exception as error:
            raise ConfigError(
                f"extension {entry_point.name} ({entry_point.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall it"
            ) from error
