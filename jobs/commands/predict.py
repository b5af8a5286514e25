"""`relevance predict`: one pair, from its text as the model reads it to the decision."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.command_run import CommandRun
from jobs.row_prediction import row_predictor_of
from models.files import remove_tree, temporary_path
from pipeline.config.run import RunConfig
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ConfigError
from pipeline.evaluation.predicted_version import PredictedVersion
from pipeline.inference.bundle_description import read_described_bundle
from pipeline.inference.labels import ScoringContext, score_rows
from pipeline.inference.predictor import BundleModel, load_encoder
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
    bundle, description = read_described_bundle(files.bundle_dir, files.bundle_sha256)
    tasks = {task.name: task for task in description.tasks}
    if task_name not in tasks:
        raise ConfigError(f"version {files.version} has no task {task_name!r}; its tasks: {', '.join(tasks)}")
    table = _build_row(pair, task_name, files)
    encoder = load_encoder(bundle, description)
    logits = _predict(config, BundleModel(files.bundle_dir, files.bundle_sha256), {task_name: table}, run)
    calibration = description.calibration[task_name]
    scored = score_rows(
        table,
        tasks[task_name],
        PredictedVersion.of(description, logits).label_probabilities(task_name),
        calibration,
        ScoringContext(
            config.scoring.batch_tokens, files.version, files.bundle_sha256, config.scoring.when_unproven
        ),
    ).to_pylist()[0]
    thresholds = calibration.markets.get(table["market"][0].as_py(), calibration)
    prediction = {
        "version": files.version,
        "task": task_name,
        "text": read_text(encoder, table, task_name),
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


def _predict(
    config: RunConfig, model: BundleModel, tables: Mapping[str, pa.Table], run: CommandRun
) -> dict[str, np.ndarray]:
    """Return logits (1, C) by task. A pair is asked about once, so its prediction is not kept."""
    folder = temporary_path(config.run_dir / "pair")
    try:
        with row_predictor_of(config, run) as row_predictor:
            once = replace(row_predictor, root=folder)
            return once.logits(model, {"pair": tables}, config.scoring)["pair"]
    finally:
        remove_tree(folder)


def read_text(encoder: Encoder, table: pa.Table, task_name: str) -> str:
    """Return the text of a row's tokens: cut and assembled as the model gets it."""
    (ids,) = encoder.encode(table, task_name)
    return str(encoder.tokenizer.decode(ids))


def _build_row(pair: Mapping[str, str], task_name: str, files: VersionFiles) -> pa.Table:
    row = {"row_id": "predict", "market": "unknown", **pair}
    table = pa.Table.from_pylist([row], schema=ROW_SCHEMA)
    _, errors = split_valid_rows(table, task_name, 0, files.bundle_sha256)
    if errors.num_rows:
        raise ConfigError(f"pair not valid: {errors['reason'][0].as_py()}; correct --query or the ad's texts")
    return table


def _threshold(value: float | None) -> str:
    return "none: the valid split cannot prove the target precision" if value is None else f"{value:.4f}"
