"""A process that holds one verified model and works on units, one at a time.

An error of a unit stays with the unit. A process that crashes or hangs is started again and retries its unit,
up to MAX_ATTEMPTS times in all. Then the unit fails with the ids of the rows that were in flight, and the
others go on.

Shape legend: N rows of a part of a unit.
"""

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from models.serialization.bundle import Bundle
from pipeline.config.scoring import ScoringConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.inference.attempts import MAX_ATTEMPTS, LoadAttempts, UnitAttempts
from pipeline.inference.predictor import BundleModel, Predictor
from pipeline.inference.step_plan import Plan, Result, Step
from pipeline.runtime.run_log import RunLog, logging_to
from pipeline.runtime.timing import synchronize

logger = logging.getLogger(__name__)

UnitResultT = TypeVar("UnitResultT")

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class ModelActorSettings:
    """Settings of the actors of one command; Ray sends them to each actor."""

    model: BundleModel
    actors: ScoringConfig  # threads, device and limits of each actor
    attempts_dir: Path  # shared by the actors
    log: RunLog | None = None  # of the command


@dataclass(frozen=True)
class UnitFailure:
    """Reason for the failure of a unit."""

    error: str
    retry: bool = False  # True: the same command may succeed later
    is_config_error: bool = False  # True: no unit can be done until a setting or the backbone changes
    is_damaged: bool = False  # True: the bundle or the backbone is damaged, or another one than recorded


def failure_error(failures: Sequence[UnitFailure], problem: str) -> RelevanceError:
    """Return the error of a command whose units failed.

    Args:
        failures: At least one.
        problem: What failed, before the reasons.

    Returns:
        A RetryableError if another attempt may succeed for some; a ConfigError if all failed for a setting
        or the backbone, a DamagedInputError if all failed for a damaged bundle or backbone.
    """
    in_order = sorted(failures, key=lambda failure: failure.retry)  # first those that will fail again
    kind: type[RelevanceError] = RetryableError if in_order[-1].retry else RelevanceError
    if all(failure.is_config_error for failure in failures):
        kind = ConfigError
    elif all(failure.is_damaged for failure in failures):
        kind = DamagedInputError
    return kind(f"{problem}: {'; '.join(failure.error for failure in in_order[:SHOWN_ERRORS])}")


@dataclass(frozen=True)
class UnitWork(Generic[UnitResultT]):
    """Callables with which an actor does one unit.

    Attributes:
        unit_id: Valid as a file's name.
        find_result: Returns the result of a unit that was done before; None if it is to do.
        prepare: Called before an attempt begins: its errors are not about the unit's rows.
        do: Does the unit within an attempt.
    """

    unit_id: str
    find_result: Callable[[], UnitResultT | None]
    prepare: Callable[[], None]
    do: Callable[[UnitAttempts], UnitResultT]


class ModelActor:
    """A loaded model, its watchdog and its attempts.

    Args:
        settings: Settings of the command.
        check: Raises RelevanceError if the loaded model does not compute here what it should.

    Attributes:
        refusal: Reason to refuse all units; empty: units are accepted. Ray restarts an actor that fails to
            start, and drops its error: units report it instead.
    """

    predictor: Predictor
    bundle: Bundle

    def __init__(self, settings: ModelActorSettings, check: Callable[[Predictor, Bundle], None]) -> None:
        import torch

        from pipeline.runtime.watchdog import Watchdog

        actors = settings.actors
        torch.set_num_threads(actors.threads_per_actor)  # the actor has its process to itself
        device = torch.device("cuda" if actors.use_gpu else "cpu")
        self.attempts_dir = settings.attempts_dir
        self.refusal, self._refused = "", UnitFailure("")
        name = uuid.uuid4().hex[:8]
        self._log = logging_to(settings.log, f"actor {name}")
        self._log.__enter__()  # open for the life of the actor: Ray ends its process
        stuck = self.attempts_dir / f"stuck-{name}.txt"
        self.watchdog = Watchdog(stuck.open("w", encoding="utf-8"), actors.hang_timeout_s)
        loads = LoadAttempts(self.attempts_dir)
        with self.watchdog:
            try:
                _check_can_load(loads, actors.num_actors, device)
                loads.begin()
                self.predictor, self.bundle = settings.model.load(device)
                check(self.predictor, self.bundle)
                loads.reset()
            except RelevanceError as error:
                self.refusal = f"nothing was published by this actor: {error}"
                self._refused = _describe_failure(error, self.refusal)
                logger.error("%s", self.refusal)

    def work_on(self, work: UnitWork[UnitResultT]) -> UnitResultT | UnitFailure:
        """Do a unit unless it is done, and return its result or why it failed."""
        if self.refusal:
            return self._refused
        attempts = UnitAttempts(self.attempts_dir, work.unit_id)
        try:
            found = work.find_result()
            return self._attempt(work, attempts) if found is None else found
        except (OSError, RetryableError) as error:
            return UnitFailure(str(error), retry=True)
        except RelevanceError as error:
            return UnitFailure(str(error))
        except Exception as error:
            if _is_device_lost(error):
                logger.error("device lost: %s", error)
                os._exit(1)  # every later call would fail; the next process retries the unit
            return UnitFailure(f"{type(error).__name__}: {error}, {attempts.describe_in_flight()}")

    def _attempt(self, work: UnitWork[UnitResultT], attempts: UnitAttempts) -> UnitResultT:
        """Count an attempt and do the unit; after an error of the model, try again row by row.

        Raises:
            RelevanceError: All attempts are used up.
        """
        if attempts.count() >= MAX_ATTEMPTS:
            raise RelevanceError(
                f"process crashed or hung {MAX_ATTEMPTS} times, last {attempts.describe_in_flight()}; "
                "remove these rows or see the worker's log"
            )
        with self.watchdog:
            work.prepare()
            while True:
                attempts.begin()
                try:
                    done = work.do(attempts)
                    attempts.finish()
                    return done
                except (RelevanceError, OSError):
                    raise
                except Exception as error:
                    is_last = attempts.count() >= MAX_ATTEMPTS or len(attempts.in_flight_rows()) <= 1
                    if is_last or _is_device_lost(error):
                        raise

    def run_part(
        self,
        plan_rows: Callable[[pa.Table, bool], Plan[Result]],
        rows: pa.Table,
        attempts: UnitAttempts,
        candidates: Sequence[int],
        first_row: int = 0,
        before_step: Callable[[Step[Any]], None] = lambda step: None,
    ) -> Result:
        """Run the plan of a part of a unit; rows that stopped an earlier attempt are run first, one by one.

        So the row that fails is the only one in flight.

        Args:
            plan_rows: Returns the plan for rows; True: it is a retry, in which every work must be a step.
            rows: The part.
            attempts: Attempts at the unit.
            candidates: From `UnitAttempts.retry_candidates`, read before the unit's first part.
            first_row: Number of the part's first row among the valid rows of the unit.
            before_step: Called with each step before it runs.
        """
        row_id_N = rows.column("row_id")
        for candidate in candidates:
            row = candidate - first_row
            if 0 <= row < rows.num_rows:
                plan = plan_rows(rows.slice(row, 1), True).renumbered(np.array([row]))
                self.run_plan(plan, row_id_N, attempts, first_row=first_row, before_step=before_step)
        plan = plan_rows(rows, attempts.count() > 1)
        return self.run_plan(plan, row_id_N, attempts, first_row=first_row, before_step=before_step)

    def run_plan(
        self,
        plan: Plan[Result],
        row_id_N: pa.ChunkedArray,
        attempts: UnitAttempts,
        first_row: int = 0,
        before_step: Callable[[Step[Any]], None] = lambda step: None,
    ) -> Result:
        """Run a plan over a part of a unit; the rows of each step are recorded before it runs.

        Args:
            plan: Its rows are numbers in `row_id_N`.
            row_id_N: (N,) ids of the part's rows.
            attempts: Attempts at the unit.
            first_row: Number of the part's first row among the valid rows of the unit.
            before_step: Called with each step before it runs.
        """
        for step in plan:
            self.watchdog.heartbeat()
            if attempts.count() > 1:
                # Wait for the previous step, so that its error is not attributed to the rows of this one.
                synchronize(self.predictor.device)
            attempts.record_in_flight(step.rows + first_row, row_id_N.take(pa.array(step.rows)).to_pylist())
            before_step(step)
            step.run()
        return plan.result


def _describe_failure(error: RelevanceError, text: str) -> UnitFailure:
    """Return the failure of all units of an actor that must not work."""
    return UnitFailure(
        text,
        is_config_error=isinstance(error, ConfigError),
        is_damaged=isinstance(error, DamagedInputError),
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
            "use_gpu is true (scoring or evaluation) and torch finds no GPU on this node; install a torch "
            "with CUDA here, or set it to false"
        )


def _is_device_lost(error: Exception) -> bool:
    """Return True if the process cannot use its GPU any more, as after an illegal memory access.

    Running out of memory leaves the GPU usable.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
