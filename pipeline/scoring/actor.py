"""The actor of the batch scoring job: it judges and publishes one work unit at a time.

What goes wrong with a unit stays with it. An actor that dies, or gets no further and ends itself, is started
again and takes up its unit again, up to MAX_ATTEMPTS times in all; then the unit is told as failed, with the
rows that were being judged, and the others go on.
"""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task, check_known_task
from pipeline.encoding.prefetch import OnRows
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.evaluation.score_reference import canary_difference, read_reference
from pipeline.inference.labels import ScoringContext, score_all_tasks, score_rows
from pipeline.inference.multitask_predictor import AllTasksJudge
from pipeline.runtime.timing import wait_for
from pipeline.scoring.attempts import MAX_ATTEMPTS, Attempts, Starts
from pipeline.scoring.label_store import is_published, judged_tasks, publish_partition, read_manifest
from pipeline.scoring.row_errors import part_rows
from pipeline.scoring.score_cache import ScoreCache
from pipeline.scoring.unit_manifest import label_facts
from pipeline.scoring.unit_result import Outcome
from pipeline.scoring.work_units import Unit, read_unit, unit_of_fields
from pipeline.storage.object_store import open_store


def check_start(starts: Starts, num_actors: int, device: Any) -> None:
    """RelevanceError: an actor had better not load its model: too many in a row ended over it, and Ray would
    go on starting them. ConfigError: there is no such device here.
    """
    import torch

    if starts.number() >= MAX_ATTEMPTS * num_actors:
        raise RelevanceError(
            f"the process ended or got no further while it loaded the model, {starts.number()} times; see "
            "Ray's logs, memory first"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "scoring.use_gpu is set, and torch finds no GPU here; install a torch with CUDA on this "
            "node, or set it to false"
        )


def lost_device(error: Exception) -> bool:
    """Whether a GPU is of no more use to this process, as after an illegal access; not where only its memory
    was too small.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


class UnitScorer:
    """A Ray Data actor: holds one verified model, scores one unit a call. Each call returns what became of
    the unit.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """`settings`: of `actor_settings`."""
        import torch

        from pipeline.inference.predictor import load_judge
        from pipeline.runtime.flops import seconds_at_peak
        from pipeline.runtime.watchdog import Watch

        torch.set_num_threads(settings["threads"])
        device = torch.device("cuda" if settings["use_gpu"] else "cpu")
        self.settings, self.scores = settings, open_store(settings["scores"])
        self.context = ScoringContext(
            settings["batch_tokens"], settings["model_version"], settings["bundle_sha256"]
        )
        self.cache, self.token_s = ScoreCache(self.scores, settings["known_files"]), 0.0
        self.attempts_dir = Path(settings["attempts_dir"])
        self.all_tasks: AllTasksJudge | None = None
        stuck = self.attempts_dir / f"stuck-{uuid.uuid4().hex[:8]}.txt"
        self.watch = Watch(stuck.open("w", encoding="utf-8"), settings["hang_timeout_s"])
        starts = Starts(self.attempts_dir)
        with self.watch:
            try:
                check_start(starts, settings["num_actors"], device)
                starts.begin()
                self.judge, self.bundle = load_judge(
                    Path(settings["bundle_dir"]), settings["bundle_sha256"], device
                )
                starts.done()
                self.refusal = self._check_canaries(None)
                self.token_s = seconds_at_peak(self.judge.model, device, self.judge.backbone.dtype)
            # an actor that does not start is started again and tells nobody why
            except RelevanceError as error:
                self.refusal = f"nothing was published from here: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        units = [unit_of_fields(json.loads(str(text))) for text in batch["unit"]]
        return {"outcome": [json.dumps(asdict(self.outcome(unit))) for unit in units]}

    def _check_canaries(self, all_tasks: AllTasksJudge | None) -> str:
        """Why nothing may be published from here; empty: it may. Each actor checks for itself, as machines
        differ.
        """
        if self.settings["reference"] is None:
            return ""
        reference = read_reference(Path(self.settings["reference"]), self.bundle.sha256)
        found = canary_difference(self.judge, reference, self.context.batch_tokens, all_tasks)
        if found <= self.settings["canary_tolerance"]:
            return ""
        moved = (
            f"canary rows are judged otherwise here than when the version was evaluated: by up to {found:.4f}"
        )
        limit = f"more than scoring.canary_tolerance {self.settings['canary_tolerance']}"
        return (
            f"{moved}, {limit}; nothing was published from here. Compare the software and the hardware of "
            "both"
        )

    def outcome(self, unit: Unit) -> Outcome:
        """Score one unit. No error of a unit's own comes out: it is the outcome."""
        if self.refusal:
            return Outcome(unit.partition, unit.path, error=self.refusal)
        attempts = Attempts(self.attempts_dir, unit.partition)
        try:
            return self._unless_done(unit, attempts)
        except (OSError, RetryableError) as error:
            return Outcome(unit.partition, unit.path, error=f"{unit.path}: {error}", retry=True)
        except RelevanceError as error:
            return Outcome(unit.partition, unit.path, error=f"{unit.path}: {error}")
        except Exception as error:
            if lost_device(error):
                # nothing that this process is given would succeed; the one after it takes up the unit again
                os._exit(1)
            return Outcome(
                unit.partition,
                unit.path,
                error=f"{unit.path}: {type(error).__name__}: {error}, {attempts.in_hand()}",
            )

    def _unless_done(self, unit: Unit, attempts: Attempts) -> Outcome:
        """Begin an attempt, unless the unit is published, by an actor that was lost before it could tell or
        another scorer, or had its attempts.
        """
        if is_published(self.scores, unit.partition):
            manifest = read_manifest(self.scores, unit.partition)
            return Outcome(
                unit.partition,
                unit.path,
                manifest["rows"],
                manifest.get("error_rows", 0),
                tasks=tuple(judged_tasks(manifest)),
            )
        if attempts.number() >= MAX_ATTEMPTS:
            why = (
                f"the process that scored it ended or got no further {MAX_ATTEMPTS} times, the last time "
                f"{attempts.in_hand()}"
            )
            raise RelevanceError(f"{why}; take these rows out or see the worker's log")
        with self.watch:
            for name in [task.name for task in self.judge.tasks] if unit.all_tasks else [unit.task]:
                # before the attempt, which is about the unit's own rows
                self.cache.of_task(name, self.watch.alive)
            attempts.begin()
            return self._score(unit, attempts)

    def _score(self, unit: Unit, attempts: Attempts) -> Outcome:
        """Judge and publish."""
        task = check_known_task(unit.task, self.judge.tasks, "the model's bundle")
        tasks, all_tasks = (self.judge.tasks, self._judge_of_all()) if unit.all_tasks else ((task,), None)
        whole, first_row = read_unit(unit)
        table, errors = part_rows(whole, task.name, first_row, self.bundle.sha256)
        row_ids = table.column("row_id")
        judged_N = np.zeros(table.num_rows, bool)
        again = attempts.number() > 1  # then whatever goes wrong must do so while its own rows are in hand

        def begin(rows: np.ndarray) -> None:
            self.watch.alive()
            if again:
                wait_for(self.judge.device)
            judged_N[rows] = True
            attempts.take(rows, row_ids.take(pa.array(rows)).to_pylist())

        def score(rows: pa.Table, on_rows: OnRows) -> pa.Table:
            context = replace(self.context, on_rows=on_rows, ahead=not again)
            if all_tasks is not None:
                known = {one.name: self.cache.of_task(one.name) for one in tasks}
                return score_all_tasks(all_tasks, rows, context, known)
            return score_rows(self.judge, rows, task, context, self.cache.of_task(task.name))

        before = self._spent(task, all_tasks)
        try:
            for row in attempts.suspects():  # one by one, so that the one which does it is the one in hand
                score(table.slice(row, 1), lambda _, row=row: begin(np.array([row])))  # type: ignore[misc]
            scored = score(table, begin)
        except (RelevanceError, OSError):
            raise
        except Exception as error:
            if lost_device(error):
                raise
            if attempts.number() < MAX_ATTEMPTS and len(attempts.rows_taken()) > 1:
                attempts.begin()
                return self._score(unit, attempts)
            raise
        self._publish(unit, tasks, whole.num_rows, table, scored, errors)
        took = {name: value - before[name] for name, value in self._spent(task, all_tasks).items()}
        return Outcome(
            unit.partition,
            unit.path,
            scored.num_rows,
            errors.num_rows,
            reused=int((~judged_N).sum()),
            at_peak_s=took["tokens_computed"] * self.token_s,
            tasks=tuple(one.name for one in tasks),
            **took,
        )

    def _spent(self, task: Task, all_tasks: AllTasksJudge | None) -> dict[str, Any]:
        """What judging took so far: of one task, or of all together."""
        return asdict(all_tasks.spent() if all_tasks is not None else self.judge.spent(task))

    def _publish(
        self,
        unit: Unit,
        tasks: Sequence[Task],
        num_rows: int,
        table: pa.Table,
        scored: pa.Table,
        errors: pa.Table,
    ) -> None:
        """Publish the labels of a unit of `num_rows` rows: `table` those scored, `errors` the others."""
        assert scored.num_rows == len(tasks) * (num_rows - errors.num_rows), (
            "rows in are labels and errors together, of each task"
        )
        markets = table.column("market").to_pylist()
        facts = label_facts(unit, tasks, num_rows, scored, markets, self.context)
        publish_partition(self.scores, unit.partition, scored, facts, errors)

    def _judge_of_all(self) -> AllTasksJudge:
        """Made for the first unit that is judged for all tasks. RelevanceError: it judges canary rows
        otherwise than they were.
        """
        if self.all_tasks is None:
            made = AllTasksJudge(self.judge)
            # task by task they were judged already
            refusal = self._check_canaries(made) if made.one_pass is not False else ""
            if refusal:
                raise RelevanceError(refusal)
            self.all_tasks = made
        return self.all_tasks
