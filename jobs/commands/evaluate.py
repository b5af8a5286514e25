"""`relevance evaluate`: calibrate on the valid split, measure on the test split, print the table."""

from typing import Any

from jobs.console import Console, aligned
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.runner import run_evaluation

HEADINGS = ("task", "rows", "system", "AUC", "PR-AUC", "95 % interval", "defects", "macro F1", "ECE")

SHOWN = ("roc_auc", "pr_auc", "defect_pr_auc", "macro_f1", "calibration_error")

NAMES = {"model": "model", "lexical": "lexical floor", "untrained": "untrained"}


def run_evaluate(config: RunConfig, console: Console) -> dict[str, Any]:
    """Evaluate the trained bundle of the run; ConfigError if there is none."""
    trained_dir = config.run_dir / "trained"
    if not trained_dir.is_dir():
        raise ConfigError(f"{trained_dir} does not exist; run `relevance train` with this config first")
    with (
        console.track("encode", None, "rows") as encoding,
        console.track("evaluate", None, "pairs") as predicting,
    ):
        evaluation = run_evaluation(
            config,
            trained_dir,
            lambda done, total: encoding.update(done, total=total),
            lambda done, total: predicting.update(done, total=total),
        )
    if evaluation["not_measured"]:
        console.say(
            "  not measured, for want of both relevant and irrelevant test rows: "
            f"{', '.join(evaluation['not_measured'])}"
        )
    return {
        "bundle": str(config.run_dir / "bundle"),
        "evaluation": str(config.run_dir / "evaluation.json"),
        "figures": evaluation,
    }


def evaluation_table(evaluation: dict[str, Any]) -> str:
    """The figures of every task and system as aligned text, and the macro line."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name, figures in evaluation["tasks"].items():
        for system, shown in NAMES.items():
            f = figures[system]
            span = f"{f['pr_auc']['low']:.3f} to {f['pr_auc']['high']:.3f}"
            first = (name, f"{figures['rows']:,}") if system == "model" else ("", "")
            told = [f"{f[name]['value']:.3f}" if name in f else "" for name in SHOWN]
            rows.append((*first, shown, *told[:2], span, *told[2:]))
    for system, shown in NAMES.items():
        f = evaluation["macro_pr_auc"][system]
        rows.append(
            (
                "macro" if system == "model" else "",
                "",
                shown,
                "",
                f"{f['value']:.3f}",
                f"{f['low']:.3f} to {f['high']:.3f}",
                "",
                "",
                "",
            )
        )
    lines = [f"  {line}" for line in aligned(rows)]
    lead = evaluation["model_minus_lexical_macro_pr_auc"]
    lines.append(
        f"  model minus lexical floor, macro PR-AUC: {lead['value']:+.3f} (95 % interval "
        f"{lead['low']:+.3f} to {lead['high']:+.3f})"
    )
    alone = evaluation.get("single_task")
    if alone:
        lines.append(
            f"  PR-AUC over runs of one task ({', '.join(alone['runs'].values())}): "
            f"{alone['mean_relative_gain']:+.1%} on the mean"
        )
    return "\n".join([lines[0], "  " + "-" * (len(lines[0]) - 2), *lines[1:]])
