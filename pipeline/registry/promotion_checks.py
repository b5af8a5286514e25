"""Comparison of the promotion log with MLflow.

The log is written first, then the tag `promotion` of the promoted version, then the aliases. So the log may
be ahead of MLflow and never behind it: what MLflow knows of and the log lacks was lost from the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.strict_model import Digest
from pipeline.registry.promotion_entries import RESTORE, PromotionEntry, champion_line
from pipeline.storage.filesystem import canonical_json

ENTRY_TAG = "promotion"
CHAMPION, PREVIOUS_CHAMPION = "champion", "previous_champion"
NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class EntryTag:
    """Tag of a promoted version, which names the entry.

    It names the model, because MLflow copies tags with a version that is copied to another model.
    """

    model: str
    number: int
    sha256: Digest

    @classmethod
    def parse(cls, text: str) -> "EntryTag | None":
        """Return a recorded tag; None if it is damaged."""
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError:
            return None

    @classmethod
    def of(cls, model: str, entry: PromotionEntry) -> "EntryTag":
        """Return the tag of the version that an entry promotes."""
        return cls(model, entry.number, entry.sha256)

    def to_text(self) -> str:
        """Return the recorded form."""
        return canonical_json(asdict(self))


@dataclass(frozen=True)
class RegistryState:
    """Aliases and versions of a registered model."""

    model: str
    aliases: Mapping[str, str]
    tags: Mapping[str, Mapping[str, str]]  # by version

    @classmethod
    def read(cls, client: Any, model: str) -> "RegistryState":
        """Read the state; a model that is not registered has no versions."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = client.get_registered_model(model).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return cls(model, {}, {})
        tags: dict[str, Mapping[str, str]] = {}
        token = None
        while token != "":
            page = client.search_model_versions(
                f"name = '{model}'", order_by=["version_number ASC"], page_token=token
            )
            tags |= {str(record.version): record.tags for record in page}
            token = page.token or ""
        return cls(model, {alias: str(version) for alias, version in aliases.items()}, tags)

    def entry_tags(self) -> "dict[str, EntryTag | None]":
        """Return the tags that name an entry of this model's log, by version; None for a damaged tag."""
        tags = {
            version: EntryTag.parse(tags[ENTRY_TAG])
            for version, tags in self.tags.items()
            if ENTRY_TAG in tags
        }
        return {version: tag for version, tag in tags.items() if tag is None or tag.model == self.model}

    def log_aliases(self) -> dict[str, str]:
        """Return the aliases that follow the log."""
        names = (CHAMPION, PREVIOUS_CHAMPION)
        return {alias: version for alias, version in self.aliases.items() if alias in names}

    def wanted_aliases(self, entries: Sequence[PromotionEntry]) -> dict[str, str]:
        """Return the aliases that the log gives. A previous champion that was deleted gets none."""
        line = [entry.version for entry in champion_line(entries)]
        wanted = dict(zip((CHAMPION, PREVIOUS_CHAMPION), reversed(line[-2:]), strict=False))
        if wanted.get(PREVIOUS_CHAMPION) not in self.tags:
            wanted.pop(PREVIOUS_CHAMPION, None)
        return wanted


@dataclass(frozen=True)
class Check:
    """Result of one check of the promotion log."""

    name: str
    result: str
    passed: bool = True


def compare_with_registry(
    folder: Path, entries: Sequence[PromotionEntry], state: RegistryState
) -> list[Check]:
    """Compare the entries of a log with a state of MLflow that was read before them."""
    problems = {
        "version tags": _find_lost_entry(folder, entries, state),
        "bundle digests": _find_other_bundle(entries, state),
        "aliases": _find_unknown_alias(folder, entries, state),
    }
    checks = {name: Check(name, problem or "ok", passed=not problem) for name, problem in problems.items()}
    if checks["aliases"].passed and state.log_aliases() != state.wanted_aliases(entries):
        checks["aliases"] = Check("aliases", "behind the log until the next use")
    return list(checks.values())


def _find_lost_entry(folder: Path, entries: Sequence[PromotionEntry], state: RegistryState) -> str:
    """Return which version has a tag whose entry the log does not hold; empty if there is none."""
    known = {EntryTag.of(state.model, entry) for entry in entries}
    for version, tag in state.entry_tags().items():
        if tag is None:
            return (
                f"tag {ENTRY_TAG} of version {version} of {state.model} is damaged: "
                f"{state.tags[version][ENTRY_TAG]!r}; if `relevance history` lists every promotion, delete "
                f"the tag in MLflow, else {RESTORE}"
            )
        if tag not in known:
            return (
                f"promotion log in {folder} lacks the entry that the tag {ENTRY_TAG} of version {version} of "
                f"{state.model} names: {tag.to_text()}; {RESTORE}"
            )
    return ""


def _find_other_bundle(entries: Sequence[PromotionEntry], state: RegistryState) -> str:
    """Return which entry names another bundle than its version; empty if none does.

    Versions that were deleted are left out.
    """
    for entry in entries:
        tags = state.tags.get(entry.version)
        if tags is not None and tags.get("bundle_sha256") != entry.bundle_sha256:
            return (
                f"bundle of version {entry.version} of {state.model} has digest {tags.get('bundle_sha256')} "
                f"by its tag and {entry.bundle_sha256} by entry {entry.number} of the promotion log; correct "
                f"the tag, or {RESTORE}"
            )
    return ""


def _find_unknown_alias(folder: Path, entries: Sequence[PromotionEntry], state: RegistryState) -> str:
    """Return which version has an alias that no entry explains; empty if there is none."""
    explained: dict[str, tuple[str, set[str | None]]] = {
        CHAMPION: ("promotion of", {entry.version for entry in entries}),
        PREVIOUS_CHAMPION: ("successor of", {entry.expected_champion for entry in entries}),
    }
    for alias, version in state.log_aliases().items():
        missing, versions = explained[alias]
        if version not in versions:
            return (
                f"promotion log in {folder} holds no {missing} version {version} of {state.model}, which has "
                f"MLflow's alias {alias}; {RESTORE}. If somebody set the alias by hand, delete it in MLflow"
            )
    return ""
