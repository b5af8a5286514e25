"""Actor of the batch scoring job: scores and publishes one work unit at a time.

An error of a unit stays with the unit. An actor that crashes or hangs is started again and retries its unit,
up to MAX_ATTEMPTS times in all. Then the unit fails with the ids of the rows that were being scored, and the
others go on.

Shape legend: N rows of a unit.
"""

import json
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import Task, check_known_task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.evaluation.score_reference import check_canaries
from pipeline.inference.labels import ScoringContext, plan_multitask_scores, plan_scores
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.step_plan import Plan
from pipeline.inference.task_predictor import TokenUsage
from pipeline.publishing.unit_store import is_published
from pipeline.runtime.run_log import log_work_unit, logging_to
from pipeline.runtime.timing import synchronize
from pipeline.scoring.actor_settings import ActorSettings
from pipeline.scoring.attempts import MAX_ATTEMPTS, LoadAttempts, UnitAttempts
from pipeline.scoring.duplicates import read_duplicates
from pipeline.scoring.label_store import publish_unit, read_manifest
from pipeline.scoring.row_errors import FirstPlaces, split_valid_rows
from pipeline.scoring.score_cache import ScoreCache
from pipeline.scoring.scored_parts import ScoredParts
from pipeline.scoring.unit_manifest import UnitInput, UnitManifest, profile_labels
from pipeline.scoring.unit_result import UnitResult
from pipeline.scoring.work_units import WorkUnit, read_unit
from pipeline.storage.object_store import open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Part:
    """Valid rows of a unit that are in memory together."""

    rows: pa.Table
    task: Task
    multitask: MultitaskPredictor | None
    first_valid_row: int  # its number among the valid rows of the unit
    is_predicted_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_predicted_N", np.zeros(self.rows.num_rows, bool))


class UnitScorer:
    """Ray Data actor that holds one verified model and scores one unit per call."""

    def __init__(self, settings: ActorSettings) -> None:
        import torch

        from pipeline.inference.predictor import load_predictor
        from pipeline.runtime.flops import peak_seconds_per_token
        from pipeline.runtime.watchdog import Watchdog

        scoring, version = settings.scoring, settings.version
        torch.set_num_threads(scoring.threads_per_actor)  # the actor has its process to itself
        device = torch.device("cuda" if scoring.use_gpu else "cpu")
        self.settings, self.scores = settings, open_store(settings.scores_location)
        self.context = ScoringContext(
            scoring.batch_tokens, version.version, version.bundle_sha256, scoring.when_unproven
        )
        self.attempts_dir, self.peak_s_per_token = settings.attempts_dir, 0.0
        self.multitask: MultitaskPredictor | None = None
        self.refusal, self.is_misconfigured = "", False
        name = uuid.uuid4().hex[:8]
        self.log = logging_to(settings.log, f"actor {name}")
        self.log.__enter__()  # open for the life of the actor: Ray ends its process
        stuck = self.attempts_dir / f"stuck-{name}.txt"
        self.watchdog = Watchdog(stuck.open("w", encoding="utf-8"), scoring.hang_timeout_s)
        self.cache = ScoreCache(self.scores, settings.cached_files, self.watchdog.heartbeat)
        loads = LoadAttempts(self.attempts_dir)
        with self.watchdog:
            try:
                _check_can_load(loads, scoring.num_actors, device)
                loads.begin()
                self.predictor, self.bundle = load_predictor(
                    version.bundle_dir, version.bundle_sha256, device
                )
                loads.reset()
                self._check_canaries(None)
                self.peak_s_per_token = peak_seconds_per_token(
                    self.predictor.model, device, self.predictor.backbone.dtype
                )
            # Ray restarts an actor that fails to start, and drops its error. Units report it instead.
            except RelevanceError as error:
                self.refusal = f"nothing was published by this actor: {error}"
                self.is_misconfigured = isinstance(error, ConfigError)
                logger.error("%s", self.refusal)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score a batch of Ray Data; units and results are JSON texts."""
        units = [WorkUnit.from_json(json.loads(str(text))) for text in batch["unit"]]
        return {"result": [json.dumps(self.score_unit(unit).to_json()) for unit in units]}

    def score_unit(self, unit: WorkUnit) -> UnitResult:
        """Score and publish one unit. Errors of the unit are part of the result."""
        with log_work_unit(unit.unit_id):
            result = self._score_or_explain(unit)
            if result.error:
                logger.error("unit failed: %s", result.error)
            else:
                logger.info("unit published: %d labels, %d errors", result.labels, result.errors)
        return result

    def _score_or_explain(self, unit: WorkUnit) -> UnitResult:
        if self.refusal:
            return UnitResult(
                unit.unit_id, unit.path, error=self.refusal, is_config_error=self.is_misconfigured
            )
        attempts = UnitAttempts(self.attempts_dir, unit.unit_id)
        try:
            if is_published(self.scores, unit.unit_id):
                return self._published_result(unit)
            return self._begin_attempt(unit, attempts)
        except (OSError, RetryableError) as error:
            return UnitResult(unit.unit_id, unit.path, error=f"{unit.path}: {error}", retry=True)
        except RelevanceError as error:
            return UnitResult(unit.unit_id, unit.path, error=f"{unit.path}: {error}")
        except Exception as error:
            if _is_device_lost(error):
                logger.error("device lost: %s", error)
                os._exit(1)  # every later call would fail; the next process retries the unit
            message = f"{unit.path}: {type(error).__name__}: {error}, {attempts.describe_in_flight()}"
            return UnitResult(unit.unit_id, unit.path, error=message)

    def _published_result(self, unit: WorkUnit) -> UnitResult:
        """Return the result of a unit that a lost actor or another scorer published."""
        manifest = read_manifest(self.scores, unit.unit_id)
        return UnitResult(
            unit.unit_id, unit.path, manifest.num_labels, manifest.num_errors, tasks=manifest.tasks
        )

    def _begin_attempt(self, unit: WorkUnit, attempts: UnitAttempts) -> UnitResult:
        """Count an attempt and score the unit; after an error of the model, try again row by row.

        Raises:
            RelevanceError: All attempts are used up.
        """
        if attempts.count() >= MAX_ATTEMPTS:
            raise RelevanceError(
                f"scoring crashed or hung {MAX_ATTEMPTS} times, last {attempts.describe_in_flight()}; "
                "remove these rows or see the worker's log"
            )
        with self.watchdog:
            # Load the cache before the attempt begins: an attempt is about the unit's own rows.
            for name in [task.name for task in self.predictor.tasks] if unit.all_tasks else [unit.task]:
                self.cache.load_task(name)
            while True:
                attempts.begin()
                try:
                    return self._score(unit, attempts)
                except (RelevanceError, OSError):
                    raise
                except Exception as error:
                    is_last = attempts.count() >= MAX_ATTEMPTS or len(attempts.in_flight_rows()) <= 1
                    if is_last or _is_device_lost(error):
                        raise

    def _score(self, unit: WorkUnit, attempts: UnitAttempts) -> UnitResult:
        """Score the rows of a unit and publish their labels."""
        task = check_known_task(unit.task, self.predictor.tasks, "the model's bundle")
        multitask = self._load_multitask() if unit.all_tasks else None
        parts = ScoredParts(self.predictor.tasks if unit.all_tasks else (task,))
        places = FirstPlaces(read_duplicates(self.attempts_dir, unit))
        before = self._usage(task, multitask)
        candidates = attempts.retry_candidates()
        for rows, first_row in read_unit(unit):
            valid_rows, errors = split_valid_rows(rows, task.name, first_row, self.bundle.sha256, places)
            part = _Part(valid_rows, task, multitask, parts.num_rows)
            scored = self._score_part(part, attempts, candidates)
            parts.num_predicted += int(part.is_predicted_N.sum())
            parts.add(valid_rows, scored, errors)
        if unit.has_unknown_ids:
            raise RetryableError(
                "row_ids could not be read when they were compared, and can be now; run the same command "
                "again"
            )
        scored, errors = parts.scored, parts.errors
        self._publish(unit, parts, scored, errors)
        attempts.finish()
        after = self._usage(task, multitask)
        tokens_computed = after.tokens_computed - before.tokens_computed
        return UnitResult(
            unit.unit_id,
            unit.path,
            scored.num_rows,
            errors.num_rows,
            reused=parts.num_rows - parts.num_predicted,
            tokens_in=after.tokens_in - before.tokens_in,
            tokens_computed=tokens_computed,
            model_s=after.model_s - before.model_s,
            at_peak_s=tokens_computed * self.peak_s_per_token,
            tasks=tuple(scored_task.name for scored_task in parts.tasks),
        )

    def _score_part(self, part: "_Part", attempts: UnitAttempts, candidates: Sequence[int]) -> pa.Table:
        """Return the labels of a part; rows that stopped an earlier attempt are scored first."""
        # One by one, so that the row that fails is the only one in flight.
        for candidate in candidates:
            row = candidate - part.first_valid_row
            if 0 <= row < part.rows.num_rows:
                plan = self._plan(part.rows.slice(row, 1), part, is_retry=True)
                self._run(plan.renumbered(np.array([row])), part, attempts)
        return self._run(self._plan(part.rows, part, is_retry=attempts.count() > 1), part, attempts)

    def _plan(self, rows: pa.Table, part: "_Part", is_retry: bool) -> Plan[pa.Table]:
        """Plan the labels of rows. In a retry, tokenizing is a step too, so that its rows are recorded."""
        if part.multitask is not None:
            names = [known.name for known in self.predictor.tasks]
            cached = {name: self.cache.load_task(name) for name in names}
            return plan_multitask_scores(part.multitask, rows, self.context, cached, prefetch=not is_retry)
        cached_scores = self.cache.load_task(part.task.name)
        return plan_scores(
            self.predictor, rows, part.task, self.context, cached_scores, prefetch=not is_retry
        )

    def _run(self, plan: Plan[pa.Table], part: "_Part", attempts: UnitAttempts) -> pa.Table:
        """Run a plan over rows of a part, and mark the rows it predicts.

        The rows of each step are recorded before it runs.
        """
        row_ids = part.rows.column("row_id")
        for step in plan:
            self.watchdog.heartbeat()
            if attempts.count() > 1:
                # Wait for the previous step, so that its error is not attributed to the rows of this one.
                synchronize(self.predictor.device)
            part.is_predicted_N[step.rows] = True
            attempts.record_in_flight(
                step.rows + part.first_valid_row, row_ids.take(pa.array(step.rows)).to_pylist()
            )
            step.run()
        return plan.result

    def _usage(self, task: Task, multitask: MultitaskPredictor | None) -> TokenUsage:
        """Return a copy of the usage so far: of one task, or of all together."""
        return replace(multitask.usage() if multitask is not None else self.predictor.task_usage(task))

    def _publish(self, unit: WorkUnit, parts: ScoredParts, scored: pa.Table, errors: pa.Table) -> None:
        """Publish the labels of a unit and the errors of its other rows."""
        num_rows = parts.num_rows + errors.num_rows
        manifest = UnitManifest(
            unit_id=unit.unit_id,
            task=unit.task,
            input=UnitInput(unit.path, unit.digest, unit.part, num_rows),
            model_version=self.context.model_version,
            bundle_sha256=self.context.bundle_sha256,
            encoder_version=ENCODER_VERSION,
            tasks=tuple(task.name for task in parts.tasks),
            profiles=profile_labels(scored, parts.tasks, parts.markets),
            all_tasks=unit.all_tasks,
        )
        publish_unit(self.scores, manifest, scored, errors)

    def _load_multitask(self) -> MultitaskPredictor:
        """Return the predictor of all tasks, built and checked on first use.

        Raises:
            RelevanceError: Its canary probabilities differ from the recorded ones.
        """
        if self.multitask is None:
            multitask = MultitaskPredictor(self.predictor)
            # Without the single pass it computes the same as the predictor that was checked at the start.
            if multitask.one_pass is not False:
                self._check_canaries(multitask)
                self.predictor.task_predictors.clear()  # of the check at the start; they hold merged weights
            self.multitask = multitask
        return self.multitask

    def _check_canaries(self, multitask: MultitaskPredictor | None) -> None:
        """Check that canary rows have their recorded probabilities.

        Each actor checks for itself, as machines differ.

        Raises:
            RelevanceError: They differ by more than the tolerance.
        """
        check_canaries(
            self.predictor,
            self.bundle,
            self.context.batch_tokens,
            self.settings.scoring.canary_tolerance,
            multitask,
        )


def _check_can_load(loads: LoadAttempts, num_actors: int, device: Any) -> None:
    """Check that this node may load the model.

    Raises:
        RelevanceError: Too many loads crashed in a row; Ray would restart actors without end.
        ConfigError: The device does not exist here.
    """
    import torch

    num_crashes = loads.count()
    if num_crashes >= MAX_ATTEMPTS * num_actors:
        raise RelevanceError(
            f"model loading crashed or hung {num_crashes} times in a row; see the worker's log, check memory "
            "first"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "scoring.use_gpu is true and torch finds no GPU on this node; install a torch with CUDA here, or "
            "set it to false"
        )


def _is_device_lost(error: Exception) -> bool:
    """Return True if the process cannot use its GPU any more, as after an illegal memory access.

    Running out of memory leaves the GPU usable.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
