"""`relevance predict`: one pair, from its text as the model reads it to the decision."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.command_run import CommandRun
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.inference.labels import ScoringContext, plan_scores
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.registry.version_files import VersionFiles, fetch_version, resolve_champion
from pipeline.schema import ROW_SCHEMA
from pipeline.scoring.row_errors import split_valid_rows


def run_predict(
    config: RunConfig, task_name: str, pair: Mapping[str, str], version: str | None, run: CommandRun
) -> dict[str, Any]:
    """Print a pair's text as the model reads it, its probability, thresholds and decision.

    Args:
        config: Names the model, the registry and `scoring`.
        task_name: A task of the version.
        pair: Texts by column of the row contract; `market` may be among them.
        version: A registered version; None: the champion.
        run: The command's run.

    Raises:
        ConfigError: The version has no such task, or the pair is not a valid row.
    """
    files = fetch_version(config, version) if version else resolve_champion(config)
    predictor, _ = load_predictor(files.bundle_dir, files.bundle_sha256)
    tasks = {task.name: task for task in predictor.tasks}
    if task_name not in tasks:
        raise ConfigError(f"version {files.version} has no task {task_name!r}; its tasks: {', '.join(tasks)}")
    table = _build_row(pair, task_name, files)
    scoring = config.scoring
    context = ScoringContext(scoring.batch_tokens, files.version, files.bundle_sha256, scoring.when_unproven)
    scored = plan_scores(predictor, table, tasks[task_name], context).run().to_pylist()[0]
    calibration = predictor.calibration[task_name]
    thresholds = calibration.markets.get(table["market"][0].as_py(), calibration)
    prediction = {
        "version": files.version,
        "task": task_name,
        "text": read_text(predictor, table, task_name),
        "probability": scored["probability"],
        "label_name": scored["label_name"],
        "expected_grade": scored["expected_grade"],
        "relevant_at": thresholds.relevant_at,
        "irrelevant_below": thresholds.irrelevant_below,
        "decision": scored["decision"],
        "decision_basis": scored["decision_basis"],
    }
    run.result("text as the model reads it:", *prediction["text"].split("\n"), "")
    run.table(
        [
            ("probability of relevance", f"{scored['probability']:.4f}"),
            ("label", f"{scored['label_name']} (mean label index {scored['expected_grade']:.2f})"),
            ("relevant at or above", _threshold(thresholds.relevant_at)),
            ("irrelevant below", _threshold(thresholds.irrelevant_below)),
            ("decision", f"{scored['decision']} ({scored['decision_basis']})"),
        ]
    )
    return {**prediction, "next": run.suggest("score")}


def read_text(predictor: Predictor, table: pa.Table, task_name: str) -> str:
    """Return the text of a row's tokens: cut and assembled as the model gets it."""
    (ids,) = predictor.encoder.encode(table, task_name)
    return str(predictor.encoder.tokenizer.decode(ids))


def _build_row(pair: Mapping[str, str], task_name: str, files: VersionFiles) -> pa.Table:
    row = {"row_id": "predict", "market": "unknown", **pair}
    table = pa.Table.from_pylist([row], schema=ROW_SCHEMA)
    _, errors = split_valid_rows(table, task_name, 0, files.bundle_sha256)
    if errors.num_rows:
        raise ConfigError(f"pair not valid: {errors['reason'][0].as_py()}; correct --query or the ad's texts")
    return table


def _threshold(value: float | None) -> str:
    return "none: the valid split cannot prove the target precision" if value is None else f"{value:.4f}"
