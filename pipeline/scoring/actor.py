"""Actor of the batch scoring job: scores and publishes one work unit at a time.

Shape legend: N rows of a unit.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from models.serialization.bundle import Bundle
from pipeline.config.tasks import Task, check_known_task
from pipeline.encoding.encoder import ENCODER_VERSION
from pipeline.errors import RetryableError
from pipeline.evaluation.score_reference import check_canaries
from pipeline.inference.actor_pool import Pool, PoolUnit, do_units
from pipeline.inference.attempts import UnitAttempts
from pipeline.inference.labels import ScoringContext, plan_multitask_scores, plan_scores
from pipeline.inference.model_actor import ModelActor, UnitFailure, UnitWork
from pipeline.inference.multitask_predictor import MultitaskPredictor
from pipeline.inference.predictor import Predictor
from pipeline.inference.step_plan import Plan, Step
from pipeline.inference.task_predictor import TokenUsage
from pipeline.publishing.unit_store import is_published
from pipeline.runtime.flops import peak_seconds_per_token
from pipeline.runtime.run_log import log_work_unit
from pipeline.scoring.actor_settings import ActorSettings
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
    """Actor that scores one unit per call with one verified model."""

    def __init__(self, settings: ActorSettings) -> None:
        version, scoring = settings.version, settings.scoring
        self.settings, self.scores = settings, open_store(settings.scores_location)
        self.context = ScoringContext(
            scoring.batch_tokens, version.version, version.bundle_sha256, scoring.when_unproven
        )
        self.multitask: MultitaskPredictor | None = None
        self.peak_s_per_token = 0.0  # seconds a token takes at the measured peak of matrix products
        self.actor = ModelActor(settings.model_actor, self._check_and_measure)
        self.cache = ScoreCache(self.scores, settings.cached_files, self.actor.watchdog.heartbeat)

    @property
    def predictor(self) -> Predictor:
        """The model; there is none if the actor refuses its units."""
        return self.actor.predictor

    def do_unit(self, unit: PoolUnit) -> dict[str, Any]:
        """Score a unit."""
        return self.score_unit(WorkUnit.from_json(unit.fields)).to_json()

    def score_unit(self, unit: WorkUnit) -> UnitResult:
        """Score and publish one unit. Errors of the unit are part of the result."""
        work = UnitWork(
            unit.unit_id,
            find_result=lambda: self._published_result(unit),
            prepare=lambda: self._load_cache(unit),
            do=lambda attempts: self._score(unit, attempts),
        )
        with log_work_unit(unit.unit_id):
            result = self.actor.work_on(work)
            if isinstance(result, UnitFailure):
                failure = asdict(result)
                # a refusal of the actor is not about the unit
                error = result.error if self.actor.refusal else f"{unit.path}: {result.error}"
                result = UnitResult(unit.unit_id, unit.path, **{**failure, "error": error})
                logger.error("unit failed: %s", result.error)
            else:
                logger.info("unit published: %d labels, %d errors", result.labels, result.errors)
        return result

    def _published_result(self, unit: WorkUnit) -> UnitResult | None:
        """Return the result of a unit that a lost actor or another scorer published."""
        if not is_published(self.scores, unit.unit_id):
            return None
        manifest = read_manifest(self.scores, unit.unit_id)
        return UnitResult(
            unit.unit_id, unit.path, manifest.num_labels, manifest.num_errors, tasks=manifest.tasks
        )

    def _load_cache(self, unit: WorkUnit) -> None:
        for name in [task.name for task in self.predictor.tasks] if unit.all_tasks else [unit.task]:
            self.cache.load_task(name)

    def _score(self, unit: WorkUnit, attempts: UnitAttempts) -> UnitResult:
        """Score the rows of a unit and publish their labels."""
        task = check_known_task(unit.task, self.predictor.tasks, "the model's bundle")
        multitask = self._load_multitask() if unit.all_tasks else None
        parts = ScoredParts(self.predictor.tasks if unit.all_tasks else (task,))
        places = FirstPlaces(read_duplicates(self.actor.attempts_dir, unit))
        before = self._usage(task, multitask)
        candidates = attempts.retry_candidates()
        for rows, first_row in read_unit(unit):
            valid_rows, errors = split_valid_rows(
                rows, task.name, first_row, self.context.bundle_sha256, places
            )
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

    def _score_part(self, part: _Part, attempts: UnitAttempts, candidates: Sequence[int]) -> pa.Table:
        """Return the labels of a part, and mark the rows that are predicted."""

        def mark_predicted(step: Step[Any]) -> None:
            part.is_predicted_N[step.rows] = True

        return self.actor.run_part(
            lambda rows, is_retry: self._plan(rows, part, is_retry),
            part.rows,
            attempts,
            candidates,
            part.first_valid_row,
            mark_predicted,
        )

    def _plan(self, rows: pa.Table, part: _Part, is_retry: bool) -> Plan[pa.Table]:
        """Plan the labels of rows. In a retry, tokenizing is a step too, so that its rows are recorded."""
        if part.multitask is not None:
            names = [known.name for known in self.predictor.tasks]
            cached = {name: self.cache.load_task(name) for name in names}
            return plan_multitask_scores(part.multitask, rows, self.context, cached, prefetch=not is_retry)
        cached_scores = self.cache.load_task(part.task.name)
        return plan_scores(
            self.predictor, rows, part.task, self.context, cached_scores, prefetch=not is_retry
        )

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
                self._check_canaries(self.predictor, self.actor.bundle, multitask)
                self.predictor.task_predictors.clear()  # of the check at the start; they hold merged weights
            self.multitask = multitask
        return self.multitask

    def _check_and_measure(self, predictor: Predictor, bundle: Bundle) -> None:
        self._check_canaries(predictor, bundle)
        self.peak_s_per_token = peak_seconds_per_token(
            predictor.model, predictor.device, predictor.backbone.dtype
        )

    def _check_canaries(
        self, predictor: Predictor, bundle: Bundle, multitask: MultitaskPredictor | None = None
    ) -> None:
        """Check that canary rows have their recorded probabilities.

        Each actor checks for itself, as machines differ.

        Raises:
            RelevanceError: They differ by more than the tolerance.
        """
        tolerance = self.settings.scoring.canary_tolerance
        check_canaries(predictor, bundle, self.context.batch_tokens, tolerance, multitask)


def score_on_ray(units: Sequence[WorkUnit], settings: ActorSettings) -> Iterator[UnitResult]:
    """Yield each unit's result as it comes. Ray must be running."""
    paths = {unit.unit_id: unit.path for unit in units}

    def give_up(unit_id: str, reason: str) -> dict[str, Any]:
        path = paths[unit_id]
        return UnitResult(unit_id, path, error=f"{path}: {reason}", retry=True).to_json()

    pool = Pool(UnitScorer, settings, settings.scoring, settings.model_actor.attempts_dir)
    pool_units = {unit.unit_id: PoolUnit(unit.to_json()) for unit in units}
    for result in do_units(pool, pool_units, give_up):
        yield UnitResult.from_json(result)
