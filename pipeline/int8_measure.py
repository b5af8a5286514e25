"""What int8 does to a model's answers and how fast it is, beside the native precision, on rows that are about to be scored.

Shape legend: N rows, C labels of the task.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.quantize import product_speed
from pipeline.calibrate import calibrated_probabilities, decide, relevance_probability
from pipeline.errors import RelevanceError, RetryableError, last_line
from pipeline.judge import Judge
from pipeline.read_ahead import OnRows
from pipeline.row_errors import part_rows
from pipeline.schema import ROW_SCHEMA
from pipeline.score_inputs import InputFile, find_inputs, rows_of
from pipeline.score_reference import read_reference
from pipeline.score_units import Unit, read_unit
from pipeline.tasks import Task

SAMPLE_ROWS = 256  # of a task, the first ones of its first files
TIMED_ROWS = 64  # of those, that are judged again and again
ROUNDS = 3
LEAST_SPEED = 0.8  # of a large product, times the native one's; below that no model is faster, and measuring it may take hours
ATTEMPTS = 3  # at measuring, where the process ends over it


def first_rows(files: list[InputFile], task: Task) -> pa.Table:
    """The first valid rows of a task's files, in order."""
    found = [ROW_SCHEMA.empty_table()]
    for file in files:
        missing = SAMPLE_ROWS - sum(table.num_rows for table in found)
        if missing <= 0:
            break
        try:
            table, _ = read_unit(Unit(task.name, file.path, file.digest, "", (0, min(SAMPLE_ROWS, rows_of(file)))))
        except RetryableError:  # a store that is away: what is chosen without these rows would stand for good
            raise
        except RelevanceError:  # told where its unit is scored
            continue
        found.append(part_rows(table, task.name, 0, "")[0].slice(0, missing).cast(ROW_SCHEMA))
    return pa.concat_tables(found)


def compare(
    native: Judge, int8: Judge, table: pa.Table, task: Task, batch_tokens: int, on_rows: OnRows = lambda rows: None
) -> dict[str, Any]:  # fmt: skip
    """What int8 does to some rows: its times, and how far it moves what is published. Rows that the model has
    no finite answer to are left out. `on_rows` is called before each pass. ValueError: int8 has none where the model has."""
    encoded = native.encode({task.name: table})
    logits = [judge.logits(encoded, batch_tokens, on_rows)[:, : len(task.labels)] for judge in (native, int8)]  # and both are warm
    kept = np.flatnonzero(np.isfinite(logits[0]).all(axis=1))
    if not np.isfinite(logits[1][kept]).all():
        raise ValueError("in int8 the model has no finite answer to some rows")
    market_N = np.asarray(table.column("market").to_pylist(), dtype=object)[kept]
    calibration = native.calibration[task.name]
    probability_NC = [calibrated_probabilities(of_side[kept], calibration, task) for of_side in logits]
    relevant_N = [relevance_probability(of_side, task) for of_side in probability_NC]
    moved_N = np.abs(relevant_N[0] - relevant_N[1])
    decisions = [decide(of_side, calibration, market_N) for of_side in relevant_N]
    timed = native.encode({task.name: table.slice(0, TIMED_ROWS)})
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):  # in turn, as a machine in use is now faster and now slower
        for side, judge in zip(seconds, (native, int8), strict=True):
            started_s = time.perf_counter()
            judge.logits(timed, batch_tokens, on_rows)
            side.append(time.perf_counter() - started_s)
    return {
        "rows": len(kept),
        "mean": float(moved_N.mean()) if len(kept) else 0.0,
        "largest": float(moved_N.max(initial=0.0)),
        "labels": int((probability_NC[0].argmax(axis=1) != probability_NC[1].argmax(axis=1)).sum()),
        "decisions": int((decisions[0] != decisions[1]).sum()),
        "native_s": statistics.median(seconds[0]),
        "int8_s": statistics.median(seconds[1]),
    }


def measure(settings: Mapping[str, Any], to_score: Path | str, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """Measure a model; `settings` as an actor gets them. Errors of the project's own come out; any other is in what is measured."""
    import torch

    from pipeline.judge import load_judge
    from pipeline.watch import Watch

    torch.set_num_threads(settings["threads"])
    with (Path(settings["attempts_dir"]) / "int8-stuck.txt").open("w", encoding="utf-8") as stuck, Watch(stuck, settings["hang_timeout_s"]) as watch:
        native, bundle = load_judge(Path(settings["bundle_dir"]), settings["bundle_sha256"])
        canaries = read_reference(Path(settings["reference"]), bundle.sha256)["canaries"] if settings["reference"] else {}
        files = find_inputs(to_score, tasks)
        int8 = native.with_precision("int8")
        found: dict[str, Any] = {"tasks": {}, "canary_moves": 0.0, "matrices": 0, "failed": ""}
        speed = product_speed(native.backbone.dtype)
        for index, task in enumerate(native.tasks):
            canary = pa.Table.from_pylist(canaries.get(task.name, {}).get("rows", []), ROW_SCHEMA)
            rows = pa.concat_tables([first_rows(files.get(task.name, []), task), canary])
            if not rows.num_rows:
                continue
            given = task, settings["batch_tokens"], lambda rows: watch.alive()
            try:
                if int8.of_task(index).num_int8 and speed < LEAST_SPEED:
                    return {**found, "failed": f"a large product in int8 is {speed:.2f} times as fast as a native one on this processor"}
                if canary.num_rows:  # by themselves, as actors judge them
                    found["canary_moves"] = max(found["canary_moves"], compare(native, int8, canary, *given)["largest"])
                found["tasks"][task.name] = compare(native, int8, rows, *given)
                found["matrices"] += int8.of_task(index).num_int8
            except (RelevanceError, OSError):
                raise
            except Exception as error:  # a row over which the model raises, a product that this processor has not
                return {**found, "failed": f"{task.name}: {type(error).__name__}: {error}"}
    return found


def measure_on_ray(settings: Mapping[str, Any], to_score: Path | str, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """The same in a process of its own, with the threads that a scorer has. Ray must be running."""
    import ray

    task = ray.remote(num_cpus=settings["threads"], max_retries=ATTEMPTS - 1)(measure)
    try:
        found: dict[str, Any] = ray.get(task.remote(settings, to_score, tasks))
        return found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RelevanceError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:  # a row that ends the process; measuring over and over would end every run
        return {"tasks": {}, "canary_moves": 0.0, "matrices": 0, "failed": f"the process that measured ended {ATTEMPTS} times ({last_line(error)})"}
