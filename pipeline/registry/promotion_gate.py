"""Whether a version may become champion: rules with stated margins, each with its verdict and its reason."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.extensions import PROMOTION_RULES, load_installed_extensions
from pipeline.config.gates import PromotionConfig
from pipeline.evaluation.behavioral_tests import CaseResult
from pipeline.evaluation.comparison import Comparison


@dataclass(frozen=True)
class RuleVerdict:
    """One rule's answer."""

    rule: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """All rules' answers on one version against one champion."""

    version: str
    against: str
    rules: tuple[RuleVerdict, ...]

    @property
    def passed(self) -> bool:
        return all(rule.passed for rule in self.rules)

    def refusals(self) -> list[str]:
        """The reasons of the rules that refuse."""
        return [f"{rule.rule}: {rule.reason}" for rule in self.rules if not rule.passed]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": self.version,
            "against": self.against,
            "passed": self.passed,
            "rules": [asdict(rule) for rule in self.rules],
        }


@dataclass(frozen=True)
class Evidence:
    """What was measured of a version beside the champion."""

    comparison: Comparison
    cases: Sequence[CaseResult]  # of the behavioural tests
    data_passed: bool  # the data gate: the rows that the version was trained on, and those of now


Rule = Callable[[Evidence, PromotionConfig], RuleVerdict]


def promotion_rule(rule: Rule) -> Rule:
    """Register a rule: every version must pass it. ValueError: another one has the function's name."""
    return PROMOTION_RULES.register(rule.__name__, rule)  # type: ignore[no-any-return]


def judge_version(version: str, against: str, evidence: Evidence, config: PromotionConfig) -> Verdict:
    """Every registered rule on what was measured."""
    load_installed_extensions()
    rules = tuple(rule(evidence, config) for rule in PROMOTION_RULES.values())
    return Verdict(version, against, rules)


@promotion_rule
def data_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """The rows passed the data gate."""
    refused = (
        "the rows that the version was trained on or those of now did not pass it; see its tag data_gate "
        "and validation/report.json"
    )
    return RuleVerdict(
        "data gate",
        evidence.data_passed,
        "the version's rows and those of now passed it" if evidence.data_passed else refused,
    )


@promotion_rule
def coverage_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Whatever the champion judges was compared."""
    missing = ", ".join(evidence.comparison.not_compared)
    why = "not compared, as the version does not know them or there are no test rows of both classes"
    reason = f"{why}: {missing}" if missing else "all were compared"
    return RuleVerdict("every task of the champion", not missing, reason)


@promotion_rule
def task_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """No task is worse by more than the margin, as far as the rows can tell."""
    worse = {
        n: t.difference["pr_auc"]
        for n, t in evidence.comparison.tasks.items()
        if not t.difference["pr_auc"].low > -config.task_margin
    }
    told = "; ".join(
        f"{name} {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for name, gap in worse.items()
    )
    margin = f"promotion.task_margin {config.task_margin}"
    reason = (
        f"the interval of PR-AUC's difference goes below minus {margin}: {told}"
        if worse
        else f"no task loses more PR-AUC than {margin}"
    )
    return RuleVerdict("non-inferior on every task", not worse, reason)


@promotion_rule
def macro_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """The mean over tasks is better."""
    gap = evidence.comparison.macro_pr_auc
    passed = gap.value > config.min_macro_gain
    reason = (
        f"macro PR-AUC {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], asked for more than "
        f"{config.min_macro_gain:+.3f}"
    )
    return RuleVerdict("better on macro PR-AUC", passed, reason)


@promotion_rule
def calibration_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Probabilities mean what they say as much as the champion's."""
    gaps = {name: task.difference["calibration_error"] for name, task in evidence.comparison.tasks.items()}
    worse = {name: gap.value for name, gap in gaps.items() if not gap.value <= config.calibration_margin}
    told = ", ".join(f"{name} {value:+.3f}" for name, value in worse.items())
    margin = f"promotion.calibration_margin {config.calibration_margin}"
    reason = (
        f"calibration error {told}, more than {margin}"
        if worse
        else f"no task's calibration error grew by more than {margin}"
    )
    return RuleVerdict("calibration no worse", not worse, reason)


@promotion_rule
def slice_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """No part of the rows is clearly worse by more than the margin."""
    fallen = [
        (name, one)
        for name, task in evidence.comparison.tasks.items()
        for one in task.slices
        if not one["difference"]["high"] >= -config.slice_margin
    ]
    told = "; ".join(
        f"{name}, {one['by']} {one['slice']}: {one['difference']['value']:+.3f} on {one['rows']} rows"
        for name, one in fallen[:5]
    )
    return RuleVerdict(
        "no slice collapsed",
        not fallen,
        told or f"no slice loses more PR-AUC than {config.slice_margin} for certain",
    )


@promotion_rule
def speed_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Scoring does not get much slower."""
    ratio = evidence.comparison.speed_ratio
    reason = f"{ratio:.2f} of the champion's rows a second, asked for {config.min_speed_ratio}"
    return RuleVerdict("throughput", ratio >= config.min_speed_ratio, reason)


@promotion_rule
def behaviour_rule(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Texts changed in ways that should not matter, or should."""
    failed = [case for case in evidence.cases if not case.passed]
    told = "; ".join(
        f"{case.task}, {case.case}: {case.value:.3f}, at most {case.at_most} ({case.told})" for case in failed
    )
    return RuleVerdict(
        "behaviour", not failed, told or f"all {len(evidence.cases)} cases within their tolerances"
    )
