"""Entries of the promotion log: recorded form, and the checks of a reader.

An entry names the SHA-256 of the one before it. An entry that is altered, removed or put in between breaks
the chain, except at its end, which pipeline/registry/promotion_checks.py compares with MLflow.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from models.files import bytes_sha256, is_temporary, parse_json
from pipeline.config.strict_model import Digest
from pipeline.data.data_files import list_some
from pipeline.errors import DamagedInputError, describe_first_problem
from pipeline.storage.filesystem import canonical_json

PROMOTION: Final = "promotion"
ROLLBACK: Final = "rollback"

RESTORE = (
    "mount or restore its folder; to begin a new log, move what is there away and run `relevance promote "
    "--begin-log --override --reason REASON`"
)

_ENTRY_NAME = re.compile(r"[0-9]{6,}\.json")

Version = Annotated[str, Field(pattern=r"^[1-9][0-9]*$")]
PrAuc = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class GateTag:
    """Summary of the promotion gate's last verdict on a version, in the version's tag `gate`."""

    against: str  # version it was compared with
    passed: bool
    sha256: str  # of the whole verdict

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "GateTag | None":
        """Parse the tag of a version; None if the gate has not judged it.

        Raises:
            DamagedInputError: The tag was altered.
        """
        if "gate" not in tags:
            return None
        try:
            return TypeAdapter(cls).validate_json(tags["gate"], strict=True)
        except ValidationError as error:
            problem = describe_first_problem(error)
            raise DamagedInputError(
                f"tag gate of the version is damaged ({problem}): {tags['gate']!r}; run `relevance evaluate "
                "--version` with the version again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return asdict(self)


@dataclass(frozen=True)
class BundleTags:
    """Tags of a version that an entry records."""

    bundle_sha256: Digest
    macro_pr_auc: PrAuc
    lexical_macro_pr_auc: PrAuc

    @classmethod
    def parse(cls, tags: Mapping[str, str]) -> "BundleTags":
        """Return the tags of a version.

        Raises:
            ValueError: One is not usable.
        """
        fields: dict[str, Any] = {"bundle_sha256": tags["bundle_sha256"]}
        for name in ("macro_pr_auc", "lexical_macro_pr_auc"):
            try:
                fields[name] = parse_json(tags[name])
            except ValueError as error:
                raise ValueError(f"{name}: {tags[name]!r} is no number") from error
        try:
            return TypeAdapter(cls).validate_json(canonical_json(fields), strict=True)
        except ValidationError as error:
            raise ValueError(describe_first_problem(error)) from error


@dataclass(frozen=True)
class PromotionEntry:
    """One promotion or rollback."""

    number: int  # from 1
    kind: Literal["promotion", "rollback"]
    version: Version
    expected_champion: Version | None  # version it replaces
    by: str
    at: str
    bundle_sha256: Digest
    macro_pr_auc: PrAuc
    lexical_macro_pr_auc: PrAuc
    previous_sha256: Digest | None  # of the entry before it
    override: str | None = None  # reason given by a person
    gate: GateTag | None = None

    @property
    def sha256(self) -> str:
        """Digest of the recorded bytes."""
        return bytes_sha256(self.to_bytes())

    def to_json(self) -> dict[str, Any]:
        """Return the entry's fields; rollbacks have no verdict."""
        fields = asdict(self)
        if self.kind == ROLLBACK:
            del fields["gate"]
        return fields

    def to_bytes(self) -> bytes:
        """Return the entry as it is recorded."""
        return canonical_json(self.to_json()).encode()


def entry_name(number: int) -> str:
    """Return the name of an entry's file."""
    return f"{number:06d}.json"


def parse_entry(content: bytes) -> PromotionEntry:
    """Return the entry with these recorded bytes.

    Raises:
        ValueError: They are not what an entry is recorded as.
    """
    try:
        entry = TypeAdapter(PromotionEntry).validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(describe_first_problem(error)) from error
    if entry.to_bytes() != content:
        raise ValueError("bytes are not those that were recorded")
    return entry


def read_entries(folder: Path) -> list[PromotionEntry]:
    """Return all entries in the folder of a log, oldest first.

    Raises:
        DamagedInputError: An entry is damaged or missing, does not follow from the ones before it, or another
            file is in the folder.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise DamagedInputError(f"promotion log is not a folder: {folder}; {RESTORE}")
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    names = {path.name for path in paths if not is_temporary(path)}
    foreign = sorted(name for name in names if not _ENTRY_NAME.fullmatch(name))
    if foreign:
        raise DamagedInputError(
            f"promotion log in {folder} holds files that are no entries: {list_some(foreign, 5)}; move them "
            "away"
        )
    entries: list[PromotionEntry] = []
    for number in range(1, len(names) + 1):
        path = folder / entry_name(number)
        if path.name not in names:
            raise DamagedInputError(f"promotion log in {folder} lacks entry {number}; {RESTORE}")
        if not stat.S_ISREG(path.lstat().st_mode):  # a link could lead to a file that somebody else writes
            raise DamagedInputError(f"entry of the promotion log is not a regular file: {path}; {RESTORE}")
        try:
            entry = parse_entry(path.read_bytes())
        except ValueError as error:
            raise DamagedInputError(
                f"entry of the promotion log is damaged ({error}): {path}; {RESTORE}"
            ) from error
        if problem := _find_break(entries, entry):
            raise DamagedInputError(f"chain of the promotion log is broken ({problem}): {path}; {RESTORE}")
        entries.append(entry)
    return entries


def _find_break(entries: Sequence[PromotionEntry], entry: PromotionEntry) -> str:
    """Return why an entry does not follow from the ones before it; empty if it does."""
    line = champion_line(entries)
    previous, champion = (entries[-1].sha256, line[-1].version) if entries else (None, None)
    if entry.number != len(entries) + 1:
        return f"it has number {entry.number}"
    if entry.previous_sha256 != previous:
        return "the entry before it is not the one that it names" if entries else "it names one before it"
    if entry.expected_champion != champion:
        return f"it replaces version {entry.expected_champion}, the champion was version {champion}"
    if entry.kind == PROMOTION and entry.version == champion:
        return f"it promotes the champion, version {champion}"
    if entry.kind == ROLLBACK:
        origin = line[-2] if len(line) > 1 else None
        if origin is None or (entry.version, entry.bundle_sha256) != (origin.version, origin.bundle_sha256):
            return f"version {entry.version} is not the champion that a rollback returns to"
    return ""


def champion_line(entries: Sequence[PromotionEntry]) -> list[PromotionEntry]:
    """Return the promotions that rollbacks can return to, the champion last.

    A rollback removes the promotion that it went back from.
    """
    line: list[PromotionEntry] = []
    for entry in entries:
        if entry.kind == ROLLBACK:
            line.pop()
        else:
            line.append(entry)
    return line


def last_rollback_of(entries: Sequence[PromotionEntry], version: str) -> PromotionEntry | None:
    """Return the rollback from a version, if it is the last entry about that version."""
    about = [entry for entry in entries if version in (entry.version, entry.expected_champion)]
    last = about[-1] if about else None
    if last is not None and last.kind == ROLLBACK and last.expected_champion == version:
        return last
    return None
