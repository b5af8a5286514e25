"""Promotion gate: rules with margins that decide whether a version may become champion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.extensions import PROMOTION_RULES, load_installed_extensions
from pipeline.config.gates import PromotionConfig
from pipeline.evaluation.results import CaseResult, Comparison
from pipeline.registry.promotion_entries import GateTag
from pipeline.storage.filesystem import json_sha256

SHOWN_SLICES = 5


@dataclass(frozen=True)
class RuleVerdict:
    """Verdict of one rule."""

    rule: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Verdicts of all rules on one version against another."""

    version: str
    against: str
    rules: tuple[RuleVerdict, ...]

    @property
    def passed(self) -> bool:
        return all(rule.passed for rule in self.rules)

    def refusals(self) -> list[str]:
        """Return the reasons of the rules that refuse."""
        return [f"{rule.rule}: {rule.reason}" for rule in self.rules if not rule.passed]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Verdict":
        """Parse the recorded form."""
        rules = tuple(RuleVerdict(**rule) for rule in fields["rules"])
        return cls(fields["version"], fields["against"], rules)

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            "version": self.version,
            "against": self.against,
            "passed": self.passed,
            "rules": [asdict(rule) for rule in self.rules],
        }


@dataclass(frozen=True)
class GateReport:
    """Verdict on a version with the measurements behind it, as recorded in the registry."""

    verdict: Verdict
    comparison: Mapping[str, Any]  # JSON form of the comparison of both versions
    cases: tuple[CaseResult, ...]  # behavioral tests

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "GateReport":
        """Parse the recorded form."""
        cases = tuple(CaseResult.from_json(case) for case in fields["behaviour"])
        return cls(Verdict.from_json(fields), fields["comparison"], cases)

    def to_tag(self) -> GateTag:
        """Return the summary that promotions read."""
        return GateTag(self.verdict.against, self.verdict.passed, json_sha256(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {
            **self.verdict.to_json(),
            "comparison": dict(self.comparison),
            "behaviour": [case.to_json() for case in self.cases],
        }


@dataclass(frozen=True)
class Evidence:
    """Measurements of a version beside the champion."""

    comparison: Comparison
    cases: Sequence[CaseResult]  # behavioral tests
    data_passed: bool  # data gate, on the version's training rows and on the present rows


Rule = Callable[[Evidence, PromotionConfig], RuleVerdict]


def promotion_rule(rule: Rule) -> Rule:
    """Register a rule that every version must pass.

    Raises:
        ValueError: Another rule has the function's name.
    """
    return PROMOTION_RULES.register(rule.__name__, rule)  # type: ignore[no-any-return]


def judge_version(version: str, against: str, evidence: Evidence, config: PromotionConfig) -> Verdict:
    """Apply every registered rule."""
    load_installed_extensions()
    rules = tuple(rule(evidence, config) for rule in PROMOTION_RULES.values())
    return Verdict(version, against, rules)


@promotion_rule
def data_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that the rows passed the data gate."""
    if evidence.data_passed:
        reason = "the version's training rows and the present rows passed it"
    else:
        reason = (
            "the version's training rows or the present rows did not pass it; see its tag data_gate and "
            "validation/report.json"
        )
    return RuleVerdict("data gate", evidence.data_passed, reason)


@promotion_rule
def coverage_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that every task of the champion was compared."""
    missing = ", ".join(evidence.comparison.not_compared)
    reason = "all were compared"
    if missing:
        reason = "not compared, as the version lacks them or their test rows have only one class: " + missing
    return RuleVerdict("every task of the champion", not missing, reason)


@promotion_rule
def task_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that no task loses more PR-AUC than the margin, by the interval of the difference."""
    gaps = {name: task.difference["pr_auc"] for name, task in evidence.comparison.tasks.items()}
    worse = {name: gap for name, gap in gaps.items() if not gap.low > -config.task_margin}
    margin = f"promotion.task_margin {config.task_margin}"
    reason = f"no task loses more PR-AUC than {margin}"
    if worse:
        shown = "; ".join(
            f"{name} {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for name, gap in worse.items()
        )
        reason = f"the interval of PR-AUC's difference goes below minus {margin}: {shown}"
    return RuleVerdict("non-inferior on every task", not worse, reason)


@promotion_rule
def macro_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require a better mean PR-AUC over tasks."""
    gap = evidence.comparison.macro_pr_auc
    reason = (
        f"macro PR-AUC {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], required: more than "
        f"{config.min_macro_gain:+.3f}"
    )
    return RuleVerdict("better on macro PR-AUC", gap.value > config.min_macro_gain, reason)


@promotion_rule
def calibration_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require calibration no worse than the champion's by more than the margin."""
    gaps = {name: task.difference["calibration_error"] for name, task in evidence.comparison.tasks.items()}
    worse = {name: gap.value for name, gap in gaps.items() if not gap.value <= config.calibration_margin}
    margin = f"promotion.calibration_margin {config.calibration_margin}"
    reason = f"no task's calibration error grew by more than {margin}"
    if worse:
        shown = ", ".join(f"{name} {value:+.3f}" for name, value in worse.items())
        reason = f"calibration error {shown}, more than {margin}"
    return RuleVerdict("calibration no worse", not worse, reason)


@promotion_rule
def slice_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that no slice is worse by more than the margin with certainty."""
    collapsed = [
        (task_name, part)
        for task_name, task in evidence.comparison.tasks.items()
        for part in task.slices
        if not part.difference.high >= -config.slice_margin
    ]
    reason = f"no slice loses more PR-AUC than {config.slice_margin} with certainty"
    if collapsed:
        reason = "; ".join(
            f"{task_name}, {part.by} {part.name}: {part.difference.value:+.3f} on {part.rows} rows"
            for task_name, part in collapsed[:SHOWN_SLICES]
        )
    return RuleVerdict("no slice collapsed", not collapsed, reason)


@promotion_rule
def speed_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that scoring does not become much slower."""
    ratio = evidence.comparison.speed_ratio
    is_fast_enough = ratio >= config.min_speed_ratio
    reason = f"{ratio:.2f} of the champion's rows a second, required: {config.min_speed_ratio}"
    if not is_fast_enough:
        reason += "; to measure again, remove <run>/predictions and repeat the command"
    return RuleVerdict("throughput", is_fast_enough, reason)


@promotion_rule
def behaviour_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Require that the behavioral tests stay within their tolerances."""
    failed = [case for case in evidence.cases if not case.passed]
    reason = f"all {len(evidence.cases)} cases within their tolerances"
    if failed:
        reason = "; ".join(
            f"{case.task}, {case.case}: {case.value:.3f}, at most {case.at_most} ({case.description})"
            for case in failed
        )
    return RuleVerdict("behaviour", not failed, reason)
