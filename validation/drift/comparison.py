"""Drift of current rows from the reference profile that a model was trained on.

Lengths are compared over deciles of the reference. Words are compared within each script, so that a change of
language shows in the scripts alone. For all tasks together, the current rows are weighted to the reference's
mix of tasks, so that a change of the mix shows in task_mix alone.

False alarms, measured on 40 pairs of synthetic marketplaces that differ by their seed alone (4 tasks of 1,000
rows and about 200 queries): none of 3,240 features was named look or drift (below 0.1 % at 95 % confidence),
although PSI alone reached 0.28 in query lengths and 0.39 in query words. The price is power: with 200
queries, a change of words is reported from a PSI of about 1, with 2,000 from 0.1. The limit of unknown words
was 0.03.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from pipeline.errors import ConfigError
from pipeline.schema import TEXT_COLUMNS
from validation.drift.divergence import Counts, chance_limit, divergence, group_by_deciles, group_unnamed
from validation.drift.profile import NULLABLE_TEXTS, OTHERS, Profile, Tally, TaskProfile

Verdict = Literal["steady", "noise", "empty", "look", "drift"]

ALL_TASKS = "(all)"  # not a valid name of a task

NUM_CHANGES = 3  # categories listed for a feature

CountReader = Callable[[TaskProfile], Mapping[str, Counts]]  # counts of one feature by group

GroupCounts = Mapping[str, tuple[Counts, Counts]]  # by group: counts of the reference and of the current rows


@dataclass(frozen=True)
class Thresholds:
    """Limits from which a feature has moved."""

    look: float = 0.1  # PSI
    drift: float = 0.25  # PSI
    chance: float = 0.001  # rate at which chance alone may exceed the limit of one feature

    def __post_init__(self) -> None:
        if not 0 < self.look <= self.drift or not 0 < self.chance < 1:
            raise ConfigError(f"drift thresholds need 0 < look <= drift and 0 < chance < 1; given {self}")


class ShareChange(NamedTuple):
    """Share of one category on both sides."""

    category: str
    reference: float
    current: float


@dataclass(frozen=True)
class FeatureDrift:
    """Comparison of one feature of one task, or of all tasks.

    The verdict is noise if PSI exceeds a threshold but not the limit of chance, and empty if one side has
    nothing to compare.
    """

    feature: str
    task: str
    verdict: Verdict
    psi: float | None
    kl: float | None
    chance_limit: float | None  # PSI that chance alone exceeds at the rate `Thresholds.chance`
    changes: tuple[ShareChange, ...]  # of the categories that moved most


@dataclass(frozen=True)
class DriftReport:
    """Comparison of current rows with a reference."""

    reference_rows: Mapping[str, int]  # by task
    current_rows: Mapping[str, int]  # by task
    thresholds: Thresholds
    features: tuple[FeatureDrift, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return asdict(self)

    def moved(self) -> list[FeatureDrift]:
        """Return the features with verdict look, drift or empty, by descending PSI; empty ones last."""
        moved = [f for f in self.features if f.verdict in ("look", "drift", "empty")]
        return sorted(moved, key=lambda f: (-(f.psi if f.psi is not None else -1.0), f.feature, f.task))


def compare_profiles(reference: Profile, current: Tally, thresholds: Thresholds | None = None) -> DriftReport:
    """Compare every feature of every task, and of all tasks together.

    Args:
        reference: Profile of the training rows.
        current: Tally of the current rows; a profile does not keep all their words.
        thresholds: Limits of the verdicts.
    """
    return _Comparison(reference, current, thresholds or Thresholds()).report()


class _Comparison:
    """Comparison of one reference with one set of current rows."""

    def __init__(self, reference: Profile, current: Tally, thresholds: Thresholds) -> None:
        self.reference, self.current_tally, self.thresholds = reference, current, thresholds
        self.current = current.profile(max_markets=sys.maxsize)
        self.tasks = sorted(set(reference.tasks) | set(self.current.tasks))
        self.reference_rows = {name: _rows(reference, name) for name in self.tasks}
        self.current_rows = {name: _rows(self.current, name) for name in self.tasks}
        self.common = [name for name in self.tasks if self.reference_rows[name] and self.current_rows[name]]
        # weights of the current rows that give the reference's mix of tasks
        self.weights = {
            name: self._share(self.reference_rows, name) / self._share(self.current_rows, name)
            for name in self.common
        }
        self.num_queries = [_effective_queries(self._shares(), p) for p in (reference, self.current)]

    def _share(self, rows: Mapping[str, int], task: str) -> float:
        return rows[task] / sum(rows[name] for name in self.common)

    def _shares(self) -> dict[str, float]:
        return {name: self._share(self.reference_rows, name) for name in self.common}

    def report(self) -> DriftReport:
        """Compare all features."""
        features = [self._compare_task_mix()]
        for feature, read in _features():
            features += self._compare_feature(feature, read)
        features += [self._compare_unknown_words(column) for column in TEXT_COLUMNS]
        return DriftReport(
            self.reference_rows,
            self.current_rows,
            self.thresholds,
            tuple(feature for feature in features if feature is not None),
        )

    def _compare_task_mix(self) -> FeatureDrift | None:
        num_queries = [
            sum(task.num_queries for task in p.tasks.values()) for p in (self.reference, self.current)
        ]
        counts = {"": (self.reference_rows, self.current_rows)}
        return self._verdict("task_mix", ALL_TASKS, counts, num_queries)

    def _compare_feature(self, feature: str, read: CountReader) -> list[FeatureDrift | None]:
        by_task = {
            name: _read_pair(self.reference.tasks.get(name), self.current.tasks.get(name), read)
            for name in self.tasks
        }
        compared = []
        if feature != "labels":  # the scales of tasks differ
            total = _sum_tasks({name: by_task[name] for name in self.common}, self.weights)
            compared.append(self._verdict(feature, ALL_TASKS, _comparable(feature, total), self.num_queries))
        for name, counts in by_task.items():
            num_queries = [_num_queries(p, name) for p in (self.reference, self.current)]
            compared.append(self._verdict(feature, name, _comparable(feature, counts), num_queries))
        return compared

    def _compare_unknown_words(self, column: str) -> FeatureDrift | None:
        """Compare the share of words that the reference never held with the share expected of fresh rows.

        A share below the expected one is not a drift.
        """
        seen = self.reference.seen_words[column]
        unknown: dict[str, float] = {}  # weighted occurrences, by script
        total: dict[str, float] = {}
        for name, weight in self.weights.items():
            words = self.current_tally.tasks[name].columns[column].words
            for script, counts in seen.count_unknown(words).items():
                unknown[script] = unknown.get(script, 0.0) + weight * counts.unknown
                total[script] = total.get(script, 0.0) + weight * counts.all
        groups: dict[str, tuple[Counts, Counts]] = {}
        # a script without words in the reference shows in the scripts
        for script in sorted(set(total) & set(seen.occurrences)):
            occurrences = seen.occurrences[script]
            expected = min(seen.once.get(script, 0) / occurrences, unknown[script] / total[script])
            reference = {"unknown": expected * occurrences, "known": (1 - expected) * occurrences}
            current = {"unknown": unknown[script], "known": total[script] - unknown[script]}
            groups[script] = (reference, current)
        return self._verdict(f"unknown:{column}", ALL_TASKS, groups, self.num_queries)

    def _verdict(
        self, feature: str, task: str, groups: GroupCounts, num_queries: Sequence[float]
    ) -> FeatureDrift | None:
        """Compare the counts of one feature; None if neither side has any.

        Groups are weighted by their share of the reference.
        """
        has_reference, has_current = (
            any(sum(pair[side].values()) for pair in groups.values()) for side in (0, 1)
        )
        if not has_reference and not has_current:
            return None
        both = {g: pair for g, pair in groups.items() if sum(pair[0].values()) and sum(pair[1].values())}
        if not both:
            # either one side is empty, or all words are of other scripts, which the scripts show
            verdict: Verdict = "steady" if has_reference and has_current else "empty"
            return FeatureDrift(feature, task, verdict, None, None, None, ())
        total = sum(sum(pair[0].values()) for pair in both.values())
        weights = {group: sum(pair[0].values()) / total for group, pair in both.items()}
        parts = {group: divergence(*pair) for group, pair in both.items()}
        psi = float(sum(weights[group] * part.psi for group, part in parts.items()))
        kl = float(sum(weights[group] * part.kl for group, part in parts.items()))
        degrees_of_freedom = max(sum(part.num_categories - 1 for part in parts.values()), 1)
        limit = chance_limit(degrees_of_freedom, num_queries, self.thresholds.chance)
        verdict = _classify(psi, limit, self.thresholds)
        return FeatureDrift(feature, task, verdict, psi, kl, limit, _largest_changes(both))


def _rows(profile: Profile, task: str) -> int:
    return profile.tasks[task].rows if task in profile.tasks else 0


def _num_queries(profile: Profile, task: str) -> int:
    return profile.tasks[task].num_queries if task in profile.tasks else 0


def _features() -> Iterator[tuple[str, CountReader]]:
    """Yield the name of each feature of a task, and the function that reads its counts."""
    yield "labels", lambda task: {"": task.labels}
    yield "market", lambda task: {"": task.markets}
    for column in NULLABLE_TEXTS:
        yield f"null:{column}", partial(_null_counts, column)
    for column in TEXT_COLUMNS:
        yield f"chars:{column}", partial(_length_counts, column)
        yield f"script:{column}", partial(_script_counts, column)
        yield f"words:{column}", partial(_word_counts, column)


def _null_counts(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    nulls = task.columns[column].nulls
    return {"": {"null": nulls, "text": task.text_rows - nulls}}


def _length_counts(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    return {"": task.columns[column].lengths}


def _script_counts(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    return {"": task.columns[column].scripts}


def _word_counts(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    buckets = task.columns[column].word_buckets
    return {
        script: {f"bucket {i}": count for i, count in enumerate(counts)} for script, counts in buckets.items()
    }


def _read_pair(reference: TaskProfile | None, current: TaskProfile | None, read: CountReader) -> GroupCounts:
    before, after = (read(task) if task else {} for task in (reference, current))
    return {
        group: (before.get(group, {}), after.get(group, {})) for group in sorted(set(before) | set(after))
    }


def _sum_tasks(counts_by_task: Mapping[str, GroupCounts], weights: Mapping[str, float]) -> GroupCounts:
    """Sum the counts of several tasks, the current ones weighted."""
    total: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for name, groups in counts_by_task.items():
        for group, pair in groups.items():
            sums = total.setdefault(group, ({}, {}))
            for side, weight in ((0, 1.0), (1, weights[name])):
                for category, count in pair[side].items():
                    sums[side][category] = sums[side].get(category, 0.0) + weight * count
    return total


def _effective_queries(task_shares: Mapping[str, float], profile: Profile) -> float:
    """Return the size of an unweighted sample of queries with the variance of the weighted sum over tasks.

    It is 1 / sum(share² / queries) over tasks.
    """
    variance = sum(share**2 / max(profile.tasks[name].num_queries, 1) for name, share in task_shares.items())
    return 1 / variance if variance else 0.0


def _comparable(feature: str, groups: GroupCounts) -> GroupCounts:
    """Group lengths by deciles of the reference, and categories that the reference does not name."""
    if feature.startswith("chars:"):
        return {group: group_by_deciles(*pair) for group, pair in groups.items()}
    comparable: dict[str, tuple[Counts, Counts]] = {}
    for group, (reference, current) in groups.items():
        if OTHERS in reference:
            current = group_unnamed(reference, current)
        comparable[group] = (reference, current)
    return comparable


def _classify(psi: float, limit: float, thresholds: Thresholds) -> Verdict:
    if psi < thresholds.look:
        return "steady"
    if psi < limit:
        return "noise"
    return "drift" if psi >= thresholds.drift else "look"


def _largest_changes(groups: GroupCounts) -> tuple[ShareChange, ...]:
    """Return the categories whose share within their group moved most."""
    changes = []
    for group, (reference, current) in groups.items():
        num_reference, num_current = sum(reference.values()), sum(current.values())
        for category in set(reference) | set(current):
            changes.append(
                ShareChange(
                    f"{group} {category}" if group else category,
                    float(reference.get(category, 0) / num_reference),
                    float(current.get(category, 0) / num_current),
                )
            )
    changes.sort(key=lambda change: (-abs(change.current - change.reference), change.category))
    return tuple(change for change in changes[:NUM_CHANGES] if change.reference != change.current)
