"""How good a trained model is: calibrated on the valid split, measured on the test split, beside a lexical
floor and the untrained model.

Shape legend: N rows of a task, C its labels, D bootstrap draws.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.serialization.bundle import write_bundle
from pipeline.config.run import RunConfig
from pipeline.config.splits import Split
from pipeline.config.tasks import Task
from pipeline.data.reader import find_partitions, read_split
from pipeline.encoding.batches import EncodedRows
from pipeline.encoding.encoded_cache import EncodingPlan, OnProgress, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.errors import DataRefusedError, RetryableError
from pipeline.evaluation.bootstrap import interval
from pipeline.evaluation.calibration_fit import fit_calibration
from pipeline.evaluation.curves import curve_charts
from pipeline.evaluation.lexical_baseline import LexicalBaseline
from pipeline.evaluation.multitask_gain import gain_over_single_tasks, rows_digest
from pipeline.evaluation.score_reference import build_reference
from pipeline.evaluation.slices import cut
from pipeline.evaluation.svg_charts import standalone
from pipeline.evaluation.task_metrics import Said, Truth, as_json, measured, measured_slices
from pipeline.inference.calibration import (
    Calibration,
    calibrated_probabilities,
    decide,
    relevance_probability,
)
from pipeline.inference.predictor import Judge, fresh_judge, load_judge
from pipeline.storage.filesystem import write_bytes, write_json

SYSTEMS = ("model", "lexical", "untrained")


@dataclass(frozen=True)
class TaskScores:
    """One task's test rows, and what each system says of them."""

    truth: Truth
    said: dict[str, Said]


def run_evaluation(
    config: RunConfig, trained_dir: Path, on_encoded: OnProgress, on_progress: OnProgress
) -> dict[str, Any]:
    """Calibrate the trained bundle, publish it as <run>/bundle, measure it, write <run>/evaluation.json and
    return its content.

    `on_encoded` gets rows encoded and rows in all, where training did not encode them. DataRefusedError: the
    test split is empty.
    """
    judge, trained = load_judge(trained_dir)
    encoded = encoded_sides(config, judge, trained.tokenizer_dir, on_encoded)
    tables = {
        side: read_split(config.accepted_dir, config.tasks, config.split, side)
        for side in ("train", "valid", "test")
    }
    if not tables["test"]:
        raise DataRefusedError(
            f"no row of {config.accepted_dir} falls into the test split; add queries or raise "
            "split.test_share"
        )
    check_same_rows(
        encoded["test"], [tables["test"][task.name] for task in judge.tasks if task.name in tables["test"]]
    )
    total = sum(map(len, encoded.values())) + len(encoded["test"])
    done = Counter(total, on_progress)
    if len(encoded["valid"]):
        check_same_rows(
            encoded["valid"],
            [tables["valid"][task.name] for task in judge.tasks if task.name in tables["valid"]],
        )
        logits = judge.logits(encoded["valid"], config.scoring.batch_tokens, done.begin)
        judge = calibrated(judge, encoded["valid"], logits, tables["valid"])
    description = {
        **trained.description,
        "calibration": {name: c.model_dump(mode="json") for name, c in judge.calibration.items()},
    }
    sha256 = write_bundle(config.run_dir / "bundle", description, trained.tensors, trained.tokenizer_dir)
    model_logits = judge.logits(encoded["test"], config.scoring.batch_tokens, done.begin)
    untrained_logits = fresh_judge(config).logits(encoded["test"], config.scoring.batch_tokens, done.begin)
    scores = task_scores(judge, encoded["test"], model_logits, untrained_logits, tables, config.seed)
    if not scores:
        raise DataRefusedError(
            "no task has both relevant and irrelevant rows in the test split; add queries or raise "
            "split.test_share"
        )
    write_plots(config.run_dir / "plots", scores)
    said = test_probabilities(judge, encoded["test"], model_logits)
    write_json(
        config.run_dir / "score_reference.json",
        build_reference(judge, sha256, tables["test"], said, config.scoring.batch_tokens),
    )
    digests = {"bundle_sha256": sha256, "data_digest": trained.description["training"]["data_digest"]}
    result = {**digests, **summary(scores, config.seed), "not_measured": not_measured(config, scores)}
    for name, figures in result["tasks"].items():
        figures["rows_digest"] = rows_digest(tables["test"][name])
    if len(config.tasks) > 1:
        result["single_task"] = gain_over_single_tasks(config.work_dir, config.name, result["tasks"])
    write_json(config.run_dir / "evaluation.json", result)
    return result


def encoded_sides(
    config: RunConfig, judge: Judge, tokenizer_dir: Path, on_encoded: OnProgress
) -> dict[str, EncodedRows]:
    """Encoded valid and test rows as the judge reads them; those that training encoded, where data and
    tokenizer are the same.
    """
    partitions = find_partitions(config.accepted_dir, config.tasks)
    plan = EncodingPlan(partitions, config.split, judge.tasks, judge.encoder.config, tokenizer_dir)
    folder = publish_encoded(plan, config.run_dir, on_encoded)
    sides: tuple[Split, ...] = ("valid", "test")
    return {side: read_encoded(folder, side, judge.tasks) for side in sides}


def check_same_rows(encoded: EncodedRows, tables: list[pa.Table]) -> None:
    """RetryableError unless the encoded rows are those of the tables, in their order."""
    if tables and not encoded.row_id_N.equals(pa.concat_tables(tables).column("row_id")):
        raise RetryableError("the judged rows changed while they were read; run the same command again")


def not_measured(config: RunConfig, scores: list[TaskScores]) -> list[str]:
    """Tasks without both classes in the test split."""
    return [
        task.name for task in config.tasks if task.name not in {score.truth.task.name for score in scores}
    ]


class Counter:
    """Adds up progress over several passes."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.total, self.on_progress, self.begun = total, on_progress, 0
        on_progress(0, total)

    def begin(self, rows: np.ndarray) -> None:
        """These rows are about to be judged."""
        self.begun += len(rows)
        self.on_progress(self.begun, self.total)


def calibrated(judge: Judge, valid: EncodedRows, logits: np.ndarray, tables: dict[str, pa.Table]) -> Judge:
    """The judge with each task's calibration fitted on its valid rows; tasks without valid rows keep the
    identity.
    """
    fitted = {}
    for index, task in enumerate(judge.tasks):
        rows = np.flatnonzero(valid.task_N == index)
        market_N = markets_of(tables[task.name]) if len(rows) else np.zeros(0, dtype=object)
        fitted[task.name] = fit_calibration(
            logits[rows, : len(task.labels)], valid.label_N[rows], task, valid.queries_of(rows), market_N
        )
    return replace(judge, calibration=fitted)


def test_probabilities(judge: Judge, test: EncodedRows, logits_NC: np.ndarray) -> dict[str, np.ndarray]:
    """Calibrated label probabilities of the rows of each task that has some."""
    of_task = {
        task.name: (np.flatnonzero(test.task_N == index), task) for index, task in enumerate(judge.tasks)
    }
    return {
        name: calibrated_probabilities(logits_NC[rows, : len(task.labels)], judge.calibration[name], task)
        for name, (rows, task) in of_task.items()
        if len(rows)
    }


def markets_of(table: pa.Table) -> np.ndarray:
    """The market of each row, as objects."""
    return np.asarray(table.column("market").to_pylist(), dtype=object)


def task_scores(
    judge: Judge,
    test: EncodedRows,
    model_logits: np.ndarray,
    untrained_logits: np.ndarray,
    tables: dict[str, dict[str, pa.Table]],
    seed: int,
) -> list[TaskScores]:
    """What all systems say of each task's test rows; the lexical floor learns from the same training rows as
    the model.
    """
    scores = []
    for index, task in enumerate(judge.tasks):
        rows = np.flatnonzero(test.task_N == index)
        positive_N = test.label_N[rows] >= task.relevant_from
        if positive_N.all() or not positive_N.any():
            continue  # no row, or one class only: hardly a figure is defined
        table = tables["test"][task.name]
        truth = Truth(task, test.queries_of(rows), test.label_N[rows], cut(table, task.labels))
        said = {
            "model": said_by(
                model_logits[rows, : len(task.labels)], judge.calibration[task.name], task, markets_of(table)
            ),
            "lexical": Said(lexical_probability(task, tables["train"].get(task.name), table, seed)),
            "untrained": said_by(
                untrained_logits[rows, : len(task.labels)], Calibration(), task, markets_of(table)
            ),
        }
        scores.append(TaskScores(truth, said))
    return scores


def said_by(logits_NC: np.ndarray, calibration: Calibration, task: Task, market_N: np.ndarray) -> Said:
    """A calibrated model's word on some rows."""
    label_probability_NC = calibrated_probabilities(logits_NC, calibration, task)
    probability_N = relevance_probability(label_probability_NC, task)
    return Said(probability_N, label_probability_NC, decide(probability_N, calibration, market_N))


def lexical_probability(task: Task, train: pa.Table | None, test: pa.Table, seed: int) -> np.ndarray:
    """The floor: trees on lexical features of the columns that the task's template reads; a task without
    training rows gets one half.
    """
    if train is None:
        return np.full(test.num_rows, 0.5)

    def texts(table: pa.Table, column: str) -> list[str]:
        return [text or "" for text in table.column(column).to_pylist()]

    relevant = train.column("label").to_numpy() >= task.relevant_from
    baseline = LexicalBaseline.fit(
        texts(train, "query"), {c: texts(train, c) for c in task.ad_columns}, relevant, seed
    )
    return baseline.probability(texts(test, "query"), {c: texts(test, c) for c in task.ad_columns})


def write_plots(folder: Path, scores: list[TaskScores]) -> None:
    """The curves of each task as SVG files, the model's beside the lexical floor's."""
    folder.mkdir(exist_ok=True)
    for score in scores:
        sides = [(name, score.said[name].probability_N) for name in ("model", "lexical")]
        for name, svg in curve_charts(sides, score.truth.positive_N).items():
            write_bytes(
                folder / f"{score.truth.task.name}-{name.replace(' ', '-')}.svg",
                standalone(svg).encode("utf-8"),
            )


def summary(scores: list[TaskScores], seed: int) -> dict[str, Any]:
    """Figures of every task and system with their intervals, the model's by slice, macro PR-AUC, and the
    paired difference between model and floor.
    """
    tasks: dict[str, Any] = {}
    draws: dict[str, list[np.ndarray]] = {system: [] for system in SYSTEMS}
    for position, score in enumerate(scores):
        truth = score.truth
        figures: dict[str, Any] = {
            "rows": len(truth.label_N),
            "queries": len(set(truth.query_N)),
            "relevant": int(truth.positive_N.sum()),
        }
        for system in SYSTEMS:
            intervals, of_system = measured(truth, score.said[system], seed + position)
            figures[system] = as_json(intervals)
            draws[system].append(of_system["pr_auc"])
        lead = figures["model"]["pr_auc"]["value"] - figures["lexical"]["pr_auc"]["value"]
        figures["model_minus_lexical_pr_auc"] = asdict(
            interval(lead, draws["model"][-1] - draws["lexical"][-1])
        )
        figures["slices"] = measured_slices(truth, score.said["model"], seed + position)
        tasks[truth.task.name] = figures
    values = {system: [task[system]["pr_auc"]["value"] for task in tasks.values()] for system in SYSTEMS}
    lead_D = [m - f for m, f in zip(draws["model"], draws["lexical"], strict=True)]
    lead = [m - f for m, f in zip(values["model"], values["lexical"], strict=True)]
    return {
        "tasks": tasks,
        "macro_pr_auc": {system: macro_interval(values[system], draws[system]) for system in SYSTEMS},
        "worst_task": min(tasks, key=lambda name: tasks[name]["model"]["pr_auc"]["value"]),
        "model_minus_lexical_macro_pr_auc": macro_interval(lead, lead_D),
    }


def macro_interval(values: list[float], draws: list[np.ndarray]) -> dict[str, float]:
    """The mean over tasks with its interval: each draw redraws the queries of every task."""
    return asdict(interval(float(np.mean(values)), np.mean(draws, axis=0)))
