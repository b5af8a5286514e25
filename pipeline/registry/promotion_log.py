"""Append-only log of promotions; its last entry is the champion.

An entry is put in place only if no other one is there. MLflow's aliases are a view of the log. They are
repaired from it, because their last writer wins.

    <promotions>/<model>/000001.json   version, replaced champion, who, when, why, the gate's verdict
"""

import getpass
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError, RetryableError
from pipeline.storage.filesystem import canonical_json, put_if_absent, read_json

PROMOTION, ROLLBACK = "promotion", "rollback"


@dataclass(frozen=True)
class GateTag:
    """Summary of the promotion gate's last verdict on a version, in the version's tag `gate`."""

    against: str  # version it was compared with
    passed: bool
    sha256: str  # of the whole verdict

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "GateTag | None":
        """Parse the tag of a version; None if the gate has not judged it."""
        return cls(**json.loads(tags["gate"])) if "gate" in tags else None

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return asdict(self)


@dataclass(frozen=True)
class PromotionEntry:
    """One promotion or rollback."""

    number: int  # from 1
    kind: str  # promotion | rollback
    version: str
    expected_champion: str | None  # version it replaces
    by: str
    at: str
    bundle_sha256: str
    macro_pr_auc: float
    lexical_macro_pr_auc: float
    override: str | None = None  # reason given by a person
    gate: GateTag | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "PromotionEntry":
        """Parse a recorded entry; the first entries have no kind."""
        gate = fields.get("gate")
        return cls(**{"kind": PROMOTION, **fields, "gate": GateTag(**gate) if gate else None})

    def to_json(self) -> dict[str, Any]:
        """Return the entry as it is recorded; rollbacks have no verdict."""
        fields = asdict(self)
        if self.kind == ROLLBACK:
            del fields["gate"]
        return fields


@dataclass(frozen=True)
class PromotionResult:
    """Entry of a promotion or rollback, and the state of MLflow's aliases."""

    entry: PromotionEntry
    aliases: str  # for messages


@dataclass(frozen=True)
class PromotionLog:
    """Promotion log of one registered model."""

    folder: Path
    model: str

    @classmethod
    def from_config(cls, config: RunConfig) -> "PromotionLog":
        """Return the log that a config names."""
        return cls(config.promotions_dir, config.registry.model)

    def read(self) -> list[PromotionEntry]:
        """Return all entries, oldest first.

        Raises:
            DamagedInputError: An entry is damaged or missing.
        """
        entries: list[PromotionEntry] = []
        for path in sorted(path for path in self.folder.glob("*.json") if not path.name.startswith(".")):
            try:
                entries.append(PromotionEntry.from_json(read_json(path)))
            except (DamagedInputError, TypeError) as error:
                raise DamagedInputError(
                    f"entry of the promotion log is damaged: {path}; restore it from a backup, the log says "
                    "which version is champion"
                ) from error
            if entries[-1].number != len(entries):
                raise DamagedInputError(
                    f"promotion log in {self.folder} lacks entry {len(entries)}; restore it from a backup"
                )
        return entries

    def champion(self) -> PromotionEntry | None:
        """Return the entry of the champion; None if nothing was promoted."""
        entries = self.read()
        return entries[-1] if entries else None

    def promote(
        self, client: Any, version: str, tags: Mapping[str, str], override: str | None = None
    ) -> PromotionResult:
        """Make a version champion.

        The version must have passed the gate against the present champion. Without a champion it must beat
        the lexical baseline. Promoting the champion again changes nothing.

        Args:
            client: An MLflow client.
            version: The version.
            tags: The version's tags.
            override: Reason to promote regardless of the gate; it is recorded.

        Raises:
            GateRefusedError: The version has not passed the gate.
            RetryableError: Another promotion came first.
        """
        entries = self.read()
        if entries and entries[-1].version == version:
            return PromotionResult(entries[-1], self.sync_aliases(client))
        champion = entries[-1].version if entries else None
        gate = GateTag.from_tags(tags)
        if override is None:
            if champion is None:
                self._check_beats_baseline(version, tags)
            else:
                self._check_gate(version, gate, champion)
        entry = PromotionEntry(
            number=len(entries) + 1,
            kind=PROMOTION,
            version=version,
            expected_champion=champion,
            by=_user_name(),
            at=_utc_now(),
            bundle_sha256=tags["bundle_sha256"],
            macro_pr_auc=float(tags["macro_pr_auc"]),
            lexical_macro_pr_auc=float(tags["lexical_macro_pr_auc"]),
            override=override,
            gate=gate,
        )
        return self._append(client, entry)

    def roll_back(self, client: Any, reason: str) -> PromotionResult:
        """Make the previous champion champion again; a second rollback goes back one more.

        Raises:
            ConfigError: There is no previous champion.
            RetryableError: Another promotion came first.
        """
        entries = self.read()
        line = champion_line(entries)
        if len(line) < 2:
            raise ConfigError(
                f"model {self.model} has no earlier champion; `relevance history` lists its promotions"
            )
        entry = replace(
            line[-2],
            number=len(entries) + 1,
            kind=ROLLBACK,
            expected_champion=entries[-1].version,
            by=_user_name(),
            at=_utc_now(),
            override=reason,
            gate=None,
        )
        return self._append(client, entry)

    def sync_aliases(self, client: Any) -> str:
        """Set MLflow's aliases from the log, and return their state for a message.

        A failure does not raise, because the log decides. A user who saw a rollback fail would repeat it, and
        go back two champions.
        """
        try:
            self.repair_aliases(client)
        except (Exception, KeyboardInterrupt) as error:
            return f"behind the log until the next use ({type(error).__name__})"
        return "as in the log"

    def repair_aliases(self, client: Any) -> None:
        """Set MLflow's aliases champion and previous_champion from the log.

        The log is read again afterwards: a concurrent promotion may have been faster.
        """
        num_synced = -1
        while num_synced != len(entries := self.read()):
            num_synced = len(entries)
            registered = client.get_registered_model(self.model).aliases.items()
            aliases = {alias: str(version) for alias, version in registered}
            line = [entry.version for entry in champion_line(entries)]
            wanted = dict(zip(("champion", "previous_champion"), reversed(line[-2:]), strict=False))
            for alias, version in wanted.items():
                if aliases.get(alias) != version:
                    self._set_alias(client, alias, version)
            if "previous_champion" in aliases.keys() - wanted.keys():
                client.delete_registered_model_alias(self.model, "previous_champion")

    def _check_beats_baseline(self, version: str, tags: Mapping[str, str]) -> None:
        model, lexical = float(tags["macro_pr_auc"]), float(tags["lexical_macro_pr_auc"])
        if not model > lexical:
            raise GateRefusedError(
                f"version {version} of {self.model} has macro PR-AUC {model:.4f}, the lexical floor "
                f"{lexical:.4f}; it stays challenger. Train longer, or on more rows, and register again"
            )

    def _check_gate(self, version: str, gate: GateTag | None, champion: str) -> None:
        command = f"relevance evaluate --config CONFIG --version {version}"
        if gate is None or gate.against != champion:
            against = "no version" if gate is None else f"version {gate.against}"
            raise GateRefusedError(
                f"version {version} of {self.model} was compared with {against}, the champion is version "
                f"{champion}; run `{command}` first"
            )
        if gate.passed is not True:
            raise GateRefusedError(
                f"version {version} of {self.model} did not pass the gate against version {champion}; "
                f"`{command}` says why, --override with a --reason promotes it anyway"
            )

    def _append(self, client: Any, entry: PromotionEntry) -> PromotionResult:
        """Put an entry in place if no other one has its number, then sync the aliases."""
        path = self.folder / f"{entry.number:06d}.json"
        if not put_if_absent(path, canonical_json(entry.to_json()).encode()):
            raise RetryableError(
                f"another promotion of {self.model} came first: expected champion "
                f"{entry.expected_champion}; look at `relevance history`, then run again"
            )
        return PromotionResult(entry, self.sync_aliases(client))

    def _set_alias(self, client: Any, alias: str, version: str) -> None:
        """Point an alias at a version. A previous champion that was deleted in MLflow gets no alias."""
        from mlflow.exceptions import MlflowException

        try:
            client.set_registered_model_alias(self.model, alias, version)
        except MlflowException as error:
            if alias == "champion" or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


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


def _utc_now() -> str:
    """Return the time in UTC, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _user_name() -> str:
    """Return the account's name; its number in a container that has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
