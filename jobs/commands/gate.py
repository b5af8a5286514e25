"""`relevance evaluate --version V --against W` and `relevance compare V W`: two versions on the same rows,
and the gate's verdict.
"""

from typing import Any

from jobs.console import Console, aligned
from pipeline.config.run import RunConfig
from pipeline.errors import GateRefusedError
from pipeline.evaluation.behavioral_tests import run_cases
from pipeline.evaluation.comparison import Comparison, compare_judges
from pipeline.evaluation.evaluation_rows import judged_test_rows
from pipeline.registry.mlflow_client import mlflow_client
from pipeline.registry.model_versions import check_version, data_passed, write_verdict
from pipeline.registry.promotion_gate import Evidence, Verdict, judge_version
from pipeline.registry.promotion_log import read_promotions
from pipeline.registry.version_predictors import champion_version, judge_of
from pipeline.storage.filesystem import write_json


def run_gate(config: RunConfig, version: str, against: str, console: Console) -> dict[str, Any]:
    """Judge whether a version may take a champion's place; the verdict goes to the registry and to
    <run>/gate. GateRefusedError: it may not.
    """
    other = champion_version(config) if against == "champion" else against
    challenger, champion = (judge_of(config, one) for one in (version, other))
    tables = judged_test_rows(config)
    comparison = compare_judges(challenger, champion, tables, config.scoring.batch_tokens, config.seed)
    cases = run_cases(challenger, tables, config.scoring.batch_tokens, config.promotion.tolerances)
    # versions of older releases do not tell
    of_version = (
        check_version(mlflow_client(config), config.registry.model, version).tags.get("data_gate", "passed")
        == "passed"
    )
    evidence = Evidence(comparison, cases, of_version and data_passed(config))
    verdict = judge_version(version, other, evidence, config.promotion)
    whole = {
        **verdict.as_json(),
        "comparison": comparison.as_json(),
        "behaviour": [vars(case) for case in cases],
    }
    path = config.run_dir / "gate" / f"version-{version}-against-{other}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, whole)
    write_verdict(config, version, whole)
    console.result(comparison_table(comparison, version, other))
    console.result(verdict_table(verdict))
    if not verdict.passed:
        raise GateRefusedError(
            f"version {version} may not take the place of version {other}: {'; '.join(verdict.refusals())}"
        )
    return {"version": version, "against": other, "gate": str(path), "passed": True}


def gate_against_champion(config: RunConfig, version: str, console: Console) -> None:
    """Judge a version where another one is champion. GateRefusedError: it may not take its place."""
    log = read_promotions(config)
    if log and log[-1]["version"] != version:
        run_gate(config, version, "champion", console)


def run_compare(config: RunConfig, version: str, other: str, console: Console) -> dict[str, Any]:
    """Two versions on the test rows of a run; no verdict."""
    first, second = (judge_of(config, one) for one in (version, other))
    comparison = compare_judges(
        first, second, judged_test_rows(config), config.scoring.batch_tokens, config.seed
    )
    console.result(comparison_table(comparison, version, other))
    return {"version": version, "against": other, **comparison.as_json()}


def comparison_table(comparison: Comparison, version: str, other: str) -> str:
    """PR-AUC of both and the difference, task by task."""
    rows = [("task", f"version {version}", f"version {other}", "difference", "95 % interval")]
    for name, task in comparison.tasks.items():
        gap = task.difference["pr_auc"]
        cells = (
            f"{task.challenger['pr_auc'].value:.3f}",
            f"{task.champion['pr_auc'].value:.3f}",
            f"{gap.value:+.3f}",
        )
        rows.append((name, *cells, f"{gap.low:+.3f} to {gap.high:+.3f}"))
    macro = comparison.macro_pr_auc
    rows.append(("macro PR-AUC", "", "", f"{macro.value:+.3f}", f"{macro.low:+.3f} to {macro.high:+.3f}"))
    lines = [f"  {line}" for line in aligned(rows)]
    return "\n".join([*lines, f"  rows a second: {comparison.speed_ratio:.2f} of version {other}'s"])


def verdict_table(verdict: Verdict) -> str:
    """A line a rule."""
    lines = [
        f"  {'passed ' if rule.passed else 'REFUSED'}  {rule.rule}: {rule.reason}" for rule in verdict.rules
    ]
    return "\n".join(
        [
            *lines,
            (
                f"  version {verdict.version} {'may' if verdict.passed else 'may NOT'} take the place "
                "of version "
                f"{verdict.against}"
            ),
        ]
    )
