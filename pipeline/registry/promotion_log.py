"""Append-only log of promotions; its last entry is the champion.

An entry is put in place only if no other one is there. MLflow's aliases and the versions' tags `promotion`
are a view of the log. They are repaired from it, because their last writer wins.

    <promotions>/<model>/000001.json   version, replaced champion, who, when, why, the gate's verdict
"""

import getpass
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError, RelevanceError, RetryableError
from pipeline.escaping import one_line
from pipeline.registry.promotion_checks import (
    ENTRY_TAG,
    NOT_CHECKED,
    Check,
    EntryTag,
    RegistryState,
    compare_with_registry,
)
from pipeline.registry.promotion_entries import (
    PROMOTION,
    ROLLBACK,
    BundleTags,
    GateTag,
    PromotionEntry,
    champion_line,
    entry_name,
    read_entries,
)
from pipeline.storage.filesystem import put_if_absent


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

    def read_files(self) -> list[PromotionEntry]:
        """Return all entries, oldest first, without a look at MLflow.

        Raises:
            DamagedInputError: The files are not a whole log (`read_entries`).
        """
        return read_entries(self.folder)

    def read(self, client: Any) -> list[PromotionEntry]:
        """Return all entries, oldest first, after a comparison with MLflow.

        Raises:
            DamagedInputError: The files are not a whole log, or MLflow knows of promotions that they lack.
        """
        return self._compare(RegistryState.read(client, self.model))

    def verify(self, client: Any) -> list[Check]:
        """Return the results of all checks of the log."""
        state = RegistryState.read(client, self.model)  # before the log, which may grow in between
        try:
            entries = self.read_files()
        except DamagedInputError as error:
            return [Check("entries", str(error), passed=False), Check("MLflow", NOT_CHECKED)]
        return [Check("entries", "ok"), *compare_with_registry(self.folder, entries, state)]

    def begin(self, client: Any) -> None:
        """Remove the aliases and tags of an earlier log from MLflow, so that a new log can begin.

        Raises:
            ConfigError: The log holds entries.
        """
        if self.read_files():
            raise ConfigError(
                f"promotion log is not empty: {self.folder}; move the folder away to begin a new log"
            )
        state = RegistryState.read(client, self.model)
        for version in state.entry_tags():
            client.delete_model_version_tag(self.model, version, ENTRY_TAG)
        for alias in state.log_aliases():
            client.delete_registered_model_alias(self.model, alias)

    def champion(self, client: Any) -> str | None:
        """Return the champion's version, None if there is none; errors are those of `read`."""
        entries = self.read(client)
        return entries[-1].version if entries else None

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
            DamagedInputError: The log is not whole, or the version's tags are not.
            GateRefusedError: The version has not passed the gate.
            RetryableError: Another promotion came first.
        """
        entries = self.read(client)
        if entries and entries[-1].version == version:
            return PromotionResult(entries[-1], self.sync_registry(client))
        champion = entries[-1].version if entries else None
        bundle, gate = self._parse_bundle_tags(version, tags), GateTag.from_tags(tags)
        if override is None:
            if champion is None:
                self._check_beats_baseline(version, bundle)
            else:
                self._check_gate(version, gate, champion)
        entry = PromotionEntry(
            number=len(entries) + 1,
            kind=PROMOTION,
            version=version,
            expected_champion=champion,
            by=_user_name(),
            at=_utc_now(),
            bundle_sha256=bundle.bundle_sha256,
            macro_pr_auc=bundle.macro_pr_auc,
            lexical_macro_pr_auc=bundle.lexical_macro_pr_auc,
            previous_sha256=entries[-1].sha256 if entries else None,
            override=override,
            gate=gate,
        )
        return self._append(client, entry)

    def roll_back(self, client: Any, reason: str) -> PromotionResult:
        """Make the previous champion champion again; a second rollback goes back one more.

        Raises:
            ConfigError: There is no previous champion, or it was deleted in MLflow.
            RelevanceError: Another promotion or rollback came first.
        """
        state = RegistryState.read(client, self.model)
        entries = self._compare(state)
        line = champion_line(entries)
        if len(line) < 2:
            raise ConfigError(
                f"model {self.model} has no earlier champion; `relevance history` lists its promotions"
            )
        if line[-2].version not in state.tags:
            raise ConfigError(
                f"version {line[-2].version} of {self.model}, the earlier champion, was deleted in MLflow; "
                "`relevance promote --override --reason` makes another version champion"
            )
        entry = replace(
            line[-2],
            number=len(entries) + 1,
            kind=ROLLBACK,
            expected_champion=entries[-1].version,
            by=_user_name(),
            at=_utc_now(),
            previous_sha256=entries[-1].sha256,
            override=reason,
            gate=None,
        )
        return self._append(client, entry)

    def sync_registry(self, client: Any) -> str:
        """Update MLflow from the log, and return the aliases' state for a message.

        A failure does not raise, because the log decides. A user who saw a rollback fail would repeat it, and
        go back two champions.
        """
        try:
            self.repair_registry(client)
        except (Exception, KeyboardInterrupt) as error:
            return f"behind the log until the next use ({type(error).__name__})"
        return "as in the log"

    def repair_registry(self, client: Any) -> list[PromotionEntry]:
        """Set the tag of the last entry and MLflow's aliases from the log, and return the entries.

        The log is read again afterwards: a concurrent promotion may have been faster.

        Raises:
            DamagedInputError: As `read`.
        """
        num_entries = 0
        while True:
            state = RegistryState.read(client, self.model)
            entries = self._compare(state)
            if len(entries) == num_entries:
                return entries
            self._update(client, entries, state)
            num_entries = len(entries)

    def _compare(self, state: RegistryState) -> list[PromotionEntry]:
        """Return the entries; DamagedInputError if MLflow's state, which was read before, is not theirs."""
        entries = self.read_files()
        for check in compare_with_registry(self.folder, entries, state):
            if not check.passed:
                raise DamagedInputError(check.result)
        return entries

    def _update(self, client: Any, entries: Sequence[PromotionEntry], state: RegistryState) -> None:
        """Set what MLflow lacks, the tag first."""
        last, present, wanted = entries[-1], state.log_aliases(), state.wanted_aliases(entries)
        tag = EntryTag.of(self.model, last).to_text()
        if state.tags.get(last.version, {}).get(ENTRY_TAG) != tag:
            client.set_model_version_tag(self.model, last.version, ENTRY_TAG, tag)
        for alias in present.keys() - wanted.keys():
            client.delete_registered_model_alias(self.model, alias)
        for alias, version in wanted.items() - present.items():
            client.set_registered_model_alias(self.model, alias, version)

    def _parse_bundle_tags(self, version: str, tags: Mapping[str, str]) -> BundleTags:
        """Return what an entry records of the tags; DamagedInputError if they are not usable."""
        try:
            return BundleTags.parse(tags)
        except ValueError as error:
            raise DamagedInputError(
                f"tags of version {version} of {self.model} are not usable ({error}); delete the version in "
                "MLflow and register its bundle again"
            ) from error

    def _check_beats_baseline(self, version: str, bundle: BundleTags) -> None:
        model, lexical = bundle.macro_pr_auc, bundle.lexical_macro_pr_auc
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
        """Put an entry in place if no other one has its number, then update MLflow."""
        if not put_if_absent(self.folder / entry_name(entry.number), entry.to_bytes()):
            found = self.read_files()[entry.number - 1].version
            state = f"another promotion of {self.model} came first: expected champion "
            state += f"{entry.expected_champion}, found {found}; look at `relevance history`"
            if entry.kind == ROLLBACK:
                raise RelevanceError(f"{state} first: a repeated rollback goes back one more champion")
            raise RetryableError(f"{state}, then run again")
        return PromotionResult(entry, self.sync_registry(client))


def _utc_now() -> str:
    """Return the time in UTC, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _user_name() -> str:
    """Return the account's name; its number in a container that has no name for it."""
    try:
        return one_line(getpass.getuser())  # LOGNAME may hold anything
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
