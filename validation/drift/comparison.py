"""Drift: how far a data set has moved from the reference that a model was trained on, by the figures of
`divergence`.

Lengths are compared over the tenths of the reference. Words are compared within each script, so that a change
of language shows as scripts alone. Over all tasks, the current rows are weighted to the reference's mix of
tasks, so that a change of mix shows as task_mix alone.

False alarms measured, 40 pairs of made-up marketplaces that differ by their seed alone, 4 tasks of 1,000 rows
and about 200 queries: none of 3,240 features named look or drift (so below 0.1 % at 95 % confidence), though
PSI by itself went up to 0.28 in query lengths and 0.39 in query words. The price: with 200 queries a change
of words is only called from a PSI of about 1, with 2,000 from 0.1; the limit of unknown words was 0.03.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.schema import TEXT_COLUMNS
from validation.drift.divergence import Counts, chance_limit, divergence, in_tenths, under_others
from validation.drift.profile import NULLABLE_TEXTS, OTHERS, Profile, Tally, TaskProfile

Verdict = Literal["steady", "noise", "empty", "look", "drift"]

ALL_TASKS = "all"

NUM_CHANGES = 3

Reader = Callable[[TaskProfile], Mapping[str, Counts]]

Groups = Mapping[str, tuple[Counts, Counts]]  # by group: counts of the reference and of the current rows


@dataclass(frozen=True)
class Thresholds:
    """When a feature has moved."""

    look: float = 0.1  # PSI
    drift: float = 0.25  # PSI
    chance: float = 0.001  # how often chance alone may pass the limit of one feature

    def __post_init__(self) -> None:
        if not 0 < self.look <= self.drift or not 0 < self.chance < 1:
            raise ConfigError(f"thresholds of drift need 0 < look <= drift and 0 < chance < 1; given {self}")


@dataclass(frozen=True)
class FeatureDrift:
    """One feature of one task, or of all."""

    feature: str
    task: str
    # noise: PSI is above a threshold, and chance may do that with so few queries; empty: one side has nothing
    # to compare
    verdict: Verdict
    psi: float | None
    kl: float | None
    chance_limit: float | None  # PSI that chance alone passes at the rate `Thresholds.chance`
    # categories that moved most: share of the reference, share of the current rows
    changes: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class DriftReport:
    """What moved between a reference and the current rows."""

    reference_rows: Mapping[str, int]
    current_rows: Mapping[str, int]
    thresholds: Thresholds
    features: tuple[FeatureDrift, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as a json value."""
        return asdict(self)

    def moved(self) -> list[FeatureDrift]:
        """Features to look at or that drifted, the farthest first; empty ones last."""
        found = [f for f in self.features if f.verdict in ("look", "drift", "empty")]
        return sorted(found, key=lambda f: (-(f.psi if f.psi is not None else -1.0), f.feature, f.task))


def compare(reference: Profile, current: Tally, thresholds: Thresholds | None = None) -> DriftReport:
    """Every feature of every task, and of all tasks together. `reference` may come from a file; `current` is
    counted from rows.
    """
    thresholds, now = thresholds or Thresholds(), current.profile(max_markets=sys.maxsize)
    names = sorted(set(reference.tasks) | set(now.tasks))
    rows = [{name: p.tasks[name].rows if name in p.tasks else 0 for name in names} for p in (reference, now)]
    common = [name for name in names if rows[0][name] and rows[1][name]]
    weights = {
        name: (rows[0][name] / sum(rows[0][t] for t in common))
        / (rows[1][name] / sum(rows[1][t] for t in common))
        for name in common
    }
    scale = [sum(p.tasks[t].num_queries for t in p.tasks) for p in (reference, now)]
    queries_of_all = _effective_queries(reference, now, common)
    found = [_judge("task_mix", ALL_TASKS, {"": (rows[0], rows[1])}, scale, thresholds)]

    def judge_all(feature: str, read: Reader, tasks: Sequence[str] = names) -> None:
        pairs = {name: _pair(reference.tasks.get(name), now.tasks.get(name), read) for name in tasks}
        if feature != "labels":  # the scales of tasks differ
            found.append(
                _judge(
                    feature,
                    ALL_TASKS,
                    _as_groups(feature, _sum({n: pairs[n] for n in common}, weights)),
                    queries_of_all,
                    thresholds,
                )
            )
        for name, pair in pairs.items():
            queries = [p.tasks[name].num_queries if name in p.tasks else 0 for p in (reference, now)]
            found.append(_judge(feature, name, _as_groups(feature, pair), queries, thresholds))

    for feature, read in _features():
        judge_all(feature, read)
    for column in TEXT_COLUMNS:
        found.append(_judge_unknown(column, reference, current, weights, queries_of_all, thresholds))
    return DriftReport(rows[0], rows[1], thresholds, tuple(f for f in found if f is not None))


def _features() -> Iterator[tuple[str, Reader]]:
    """The name of each feature of a task, and its counts by group and category."""
    yield "labels", lambda task: {"": task.labels}
    yield "market", lambda task: {"": task.markets}
    for column in NULLABLE_TEXTS:
        yield f"null:{column}", partial(_nulls, column)
    for column in TEXT_COLUMNS:
        yield f"chars:{column}", partial(_lengths, column)
        yield f"script:{column}", partial(_scripts, column)
        yield f"words:{column}", partial(_words, column)


def _nulls(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    nulls = task.columns[column].nulls
    return {"": {"null": nulls, "text": task.text_rows - nulls}}


def _lengths(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    return {"": task.columns[column].lengths}


def _scripts(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    return {"": task.columns[column].scripts}


def _words(column: str, task: TaskProfile) -> Mapping[str, Counts]:
    buckets = task.columns[column].word_buckets
    return {
        script: {f"bucket {i}": count for i, count in enumerate(counts)} for script, counts in buckets.items()
    }


def _pair(reference: TaskProfile | None, current: TaskProfile | None, read: Reader) -> Groups:
    before, after = (read(task) if task else {} for task in (reference, current))
    return {
        group: (before.get(group, {}), after.get(group, {})) for group in sorted(set(before) | set(after))
    }


def _sum(pairs: Mapping[str, Groups], weights: Mapping[str, float]) -> Groups:
    """The counts of several tasks together, the current ones weighted."""
    total: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for name, groups in pairs.items():
        for group, pair in groups.items():
            sums = total.setdefault(group, ({}, {}))
            for side, weight in ((0, 1.0), (1, weights[name])):
                for category, count in pair[side].items():
                    sums[side][category] = sums[side].get(category, 0.0) + weight * count
    return total


def _effective_queries(reference: Profile, now: Profile, common: Sequence[str]) -> list[float]:
    """Queries of an unweighted draw as sure as the weighted sum over tasks: 1 / sum of squared weights over
    queries.
    """
    total = sum(reference.tasks[name].rows for name in common)
    shares = {name: reference.tasks[name].rows / total for name in common}
    spreads = [
        sum(shares[name] ** 2 / max(p.tasks[name].num_queries, 1) for name in common)
        for p in (reference, now)
    ]
    return [1 / spread if spread else 0.0 for spread in spreads]


def _as_groups(feature: str, groups: Groups) -> Groups:
    """Lengths in tenths of the reference; categories the reference keeps no name of, under one."""
    if feature.startswith("chars:"):
        return {group: in_tenths(*pair) for group, pair in groups.items()}
    return {
        group: (before, under_others(before, after) if OTHERS in before else after)
        for group, (before, after) in groups.items()
    }


def _judge(
    feature: str, task: str, groups: Groups, queries: Sequence[float], thresholds: Thresholds
) -> FeatureDrift | None:
    """The verdict on one feature; None if neither side has anything. Groups count by their share of the
    reference.
    """
    totals = [[sum(pair[side].values()) for pair in groups.values()] for side in (0, 1)]
    if not sum(totals[0]) and not sum(totals[1]):
        return None
    both = {group: pair for group, pair in groups.items() if sum(pair[0].values()) and sum(pair[1].values())}
    if not both:
        # nothing to compare: one side is empty, or words are of other scripts altogether, which the scripts
        # tell
        verdict: Verdict = "steady" if sum(totals[0]) and sum(totals[1]) else "empty"
        return FeatureDrift(feature, task, verdict, None, None, None, ())
    weight = {
        group: sum(pair[0].values()) / sum(sum(p[0].values()) for p in both.values())
        for group, pair in both.items()
    }
    parts = {group: divergence(*pair) for group, pair in both.items()}
    psi, kl = (float(sum(weight[group] * part[i] for group, part in parts.items())) for i in (0, 1))
    freedom = max(sum(part[2] - 1 for part in parts.values()), 1)
    limit = chance_limit(freedom, queries, thresholds.chance)
    return FeatureDrift(feature, task, _verdict(psi, limit, thresholds), psi, kl, limit, _changes(both))


def _verdict(psi: float, limit: float, thresholds: Thresholds) -> Verdict:
    if psi < thresholds.look:
        return "steady"
    if psi < limit:
        return "noise"
    return "drift" if psi >= thresholds.drift else "look"


def _changes(groups: Groups) -> tuple[tuple[str, float, float], ...]:
    """The categories whose share moved most."""
    moved = []
    for group, sides in groups.items():
        totals = [sum(side.values()) for side in sides]
        for category in set(sides[0]) | set(sides[1]):
            shares = [float(side.get(category, 0) / total) for side, total in zip(sides, totals, strict=True)]
            moved.append((f"{group} {category}" if group else category, shares[0], shares[1]))
    moved.sort(key=lambda change: (-abs(change[2] - change[1]), change[0]))
    return tuple(change for change in moved[:NUM_CHANGES] if change[1] != change[2])


def _judge_unknown(
    column: str,
    reference: Profile,
    current: Tally,
    weights: Mapping[str, float],
    queries: Sequence[float],
    thresholds: Thresholds,
) -> FeatureDrift | None:
    """Words the reference never held, beyond the share that fresh rows of the same kind would bring; fewer
    are no drift.
    """
    seen = reference.seen_words[column]
    sums: dict[str, tuple[float, float]] = {}  # by script: unknown, all
    for name, weight in weights.items():
        for script, (unknown, every) in seen.unknown(current.tasks[name].columns[column].words).items():
            before = sums.get(script, (0.0, 0.0))
            sums[script] = (before[0] + weight * unknown, before[1] + weight * every)
    groups: dict[str, tuple[Counts, Counts]] = {}
    # words of a script that is new are told by the scripts
    for script in sorted(set(sums) & set(seen.occurrences)):
        (unknown_now, now), then = sums[script], seen.occurrences[script]
        expected = min(seen.once.get(script, 0) / then, unknown_now / now)
        known = {"unknown": expected * then, "known": (1 - expected) * then}
        groups[script] = (known, {"unknown": unknown_now, "known": now - unknown_now})
    return _judge(f"unknown:{column}", ALL_TASKS, groups, queries, thresholds)
