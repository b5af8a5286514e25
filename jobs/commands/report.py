"""`relevance report`: one page that tells people what a version is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.data.reader import find_partitions
from pipeline.evaluation.bootstrap import Interval, interval
from pipeline.evaluation.comparison import differences, said_of, same_task, truth_of
from pipeline.evaluation.evaluation_rows import judged_test_rows
from pipeline.evaluation.html_report import TaskReport, VersionReport, report_page
from pipeline.evaluation.task_metrics import measured, measured_slices
from pipeline.inference.predictor import Judge
from pipeline.registry.mlflow_client import metric_history, mlflow_client
from pipeline.registry.model_versions import check_version, read_verdict
from pipeline.registry.promotion_log import champions, read_promotions
from pipeline.registry.version_files import fetch_version
from pipeline.registry.version_predictors import champion_version, judge_of
from pipeline.storage.filesystem import write_bytes
from validation.drift.comparison import compare
from validation.drift.profile import build_tally, read_profile
from validation.drift.rendering import as_text

TRAINING = ("loss", "valid_macro_pr_auc", "valid_macro_log_loss", "learning_rate")


def run_report(config: RunConfig, version: str | None, console: Console) -> dict[str, Any]:
    """Judge the test rows with a version, the champion if none is named, write <run>/reports/version-<n>.html
    and log it to the version's run.
    """
    version = version or champion_version(config)
    client = mlflow_client(config)
    record = check_version(client, config.registry.model, version)
    line = [promoted["version"] for promoted in champions(read_promotions(config))]
    # the champion or, beside that, the one before
    against = next((one for one in reversed(line) if one != version), None)
    tables = judged_test_rows(config)
    judge, other = judge_of(config, version), judge_of(config, against) if against else None
    console.say(
        f"  judging {sum(map(len, tables.values())):,} test "
        f"rows{f' twice, by version {against} too' if against else ''} ..."
    )
    tasks, macro = task_reports(judge, other, tables, config)
    if "difference" in macro:
        macro[f"macro PR-AUC minus that of version {against}"] = macro.pop("difference")
    training = {name: metric_history(client, record.run_id, name) for name in TRAINING}
    stands = standing(client, config.registry.model, line, version)
    verdict, drift = read_verdict(client, record), drift_of(config, version)
    report = VersionReport(
        config.registry.model,
        version,
        stands,
        against,
        facts_of(record),
        verdict,
        macro,
        tasks,
        training,
        drift,
    )
    path = config.run_dir / "reports" / f"version-{version}.html"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, report_page(report).encode("utf-8"))
    client.log_artifact(record.run_id, str(path), "reports")
    console.say(f"  the report of version {version}: {path}")
    return {"version": version, "against": against, "report": str(path)}


def standing(client: Any, model: str, line: Sequence[str], version: str) -> str:
    """What the version is now. `line`: the champions that stand behind each other, the one of now last."""
    if line[-1:] == [version]:
        return "champion"
    if version in line[-2:]:
        return "the champion before the one of now"
    challenger = client.get_registered_model(model).aliases.get("challenger")
    return "challenger" if str(challenger) == version else "neither champion nor challenger"


def facts_of(record: Any) -> dict[str, str]:
    """What the registry says the version is made of."""
    names = ("bundle_sha256", "data_digest", "fingerprint", "backbone_digest", "code_version")
    return {name.replace("_", " "): record.tags[name] for name in names if name in record.tags} | {
        "MLflow run": str(record.run_id)
    }


def drift_of(config: RunConfig, version: str) -> str:
    """The accepted rows of now against those that the version was trained on, as text."""
    profile = fetch_version(config, version).profile_path
    if not profile.is_file():
        return "The version carries no profile of its training rows."
    return as_text(
        compare(read_profile(profile), build_tally(find_partitions(config.accepted_dir, config.tasks)))
    )


def task_reports(
    judge: Judge, other: Judge | None, tables: Mapping[str, pa.Table], config: RunConfig
) -> tuple[list[TaskReport], dict[str, Interval]]:
    """(every task that the judge knows, macro PR-AUC and, beside another judge, `difference`)."""
    tasks, batch_tokens = [], config.scoring.batch_tokens
    draws: list[np.ndarray] = []
    gap_draws: list[np.ndarray] = []
    for position, task in enumerate(task for task in judge.tasks if task.name in tables):
        table, seed = tables[task.name], config.seed + position
        truth, said = truth_of(task, table), said_of(judge, table, task.name, batch_tokens)
        figures, of_task = measured(truth, said, seed)
        draws.append(of_task["pr_auc"])
        one = TaskReport(table, truth, said, figures, measured_slices(truth, said, seed))
        if other is not None and same_task(task, other.tasks):
            other_said = said_of(other, table, task.name, batch_tokens)
            other_figures, of_other = measured(truth, other_said, seed)
            gap_draws.append(of_task["pr_auc"] - of_other["pr_auc"])
            difference = differences(figures, of_task, other_figures, of_other)
            one = replace(one, other_said=other_said, other_figures=other_figures, difference=difference)
        tasks.append(one)
    macro = {
        "macro PR-AUC": interval(
            float(np.mean([one.figures["pr_auc"].value for one in tasks])), np.mean(draws, axis=0)
        )
    }
    if gap_draws:
        values = [one.difference["pr_auc"].value for one in tasks if one.difference]
        macro["difference"] = interval(float(np.mean(values)), np.mean(gap_draws, axis=0))
    return tasks, macro
