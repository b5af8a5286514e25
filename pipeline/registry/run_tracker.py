"""Live tracking of a training in one MLflow run.

Training does not need MLflow. It waits for an answer at the start, and for a store that does not answer until
the timeout, once in RETRY_EVERY_S seconds.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import RelevanceError
from pipeline.registry.mlflow_client import connect_mlflow, create_run, find_run
from pipeline.registry.mlflow_errors import translate_mlflow_errors
from pipeline.registry.mlflow_internals import start_system_monitor
from pipeline.registry.provenance import environment
from pipeline.storage.filesystem import canonical_json, read_json
from pipeline.training.event_log import EvaluationEvent, StepEvent

logger = logging.getLogger(__name__)

# Steps are sent in groups: a request per step would cost more than the step of a small model.
SEND_EVERY_S = 2.0

# While the store is unreachable, each attempt blocks the training's display until its timeout.
RETRY_EVERY_S = 600.0

MAX_WAITING = 200_000  # queued metrics: some thousand steps

SYSTEM_EVERY_S = 10.0  # between readings of the driver's machine

MAX_PARAM_CHARS = 6000  # MLflow's limit of a parameter's value

COMMAND_TAG = "relevance_run_id"  # id of the command

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # MLflow's limits


class RunTracker:
    """Client that sends one training to MLflow.

    At the start it sends parameters, config, environment and the data gate's verdict; then steps, evaluations
    and the load of this machine. A store that does not answer is tried again every RETRY_EVERY_S seconds and
    at the end. It then gets the last MAX_WAITING metrics that it missed. A store that takes no files gets
    everything else.
    """

    def __init__(
        self, config: RunConfig, fingerprint: str, data_digest: str, command_run_id: str = ""
    ) -> None:
        self.config, self.fingerprint, self.data_digest = config, fingerprint, data_digest
        self.command_run_id = command_run_id
        self.waiting: list[Any] = []
        self.last_send_s = time.monotonic()
        self.last_failure_s: float | None = None  # None: the store answers
        self.client: Any = None
        self.run_id: str | None = None
        self.monitor: Any = None
        self.is_open = False
        self.send()

    def log_step(self, event: StepEvent) -> None:
        """Queue one step's losses, rates and speed; send the queue if it is due."""
        values = {
            "loss": event.loss,
            "learning_rate": event.learning_rate,
            "rows_per_s": event.rows_per_s,
            "tokens_per_s": event.tokens_per_s,
            "gradient_norm": event.gradient_norm,
            "mfu": event.mfu,
        }
        values |= {f"seconds_{name}": seconds for name, seconds in event.seconds.items()}
        values |= {f"loss_{name}": loss for name, loss in event.task_losses.items()}
        values |= {f"gradient_norm_{name}": norm for name, norm in event.group_gradient_norms.items()}
        self._queue(values, event.step)

    def log_evaluation(self, event: EvaluationEvent) -> None:
        """Queue an evaluation on the valid split."""
        values = {
            f"valid_{name}_{task}": metrics[name]
            for task, metrics in event.tasks.items()
            for name in ("pr_auc", "roc_auc", "log_loss")
        }
        if event.macro_pr_auc is not None and event.macro_log_loss is not None:
            values["valid_macro_pr_auc"] = event.macro_pr_auc
            values["valid_macro_log_loss"] = event.macro_log_loss
        self._queue(values, event.evaluated_after)

    def send(self) -> None:
        """Send the queue, unless the store failed less than RETRY_EVERY_S ago."""
        self.last_send_s = time.monotonic()
        if self.last_failure_s is None or self.last_send_s - self.last_failure_s >= RETRY_EVERY_S:
            self._try_to_send()
        del self.waiting[:-MAX_WAITING]

    def finish(self, status: str) -> None:
        """Send the rest and close the run with status FINISHED, FAILED or KILLED."""
        self._try_to_send()
        if self.monitor:
            self.monitor.finish()
        if self.run_id is not None:
            self._attempt(lambda: self.client.set_terminated(self.run_id, status))
        if self.waiting:
            logger.warning(
                f"  MLflow lacks the last {len(self.waiting):,} metrics of this training; they are in its "
                "event log, see `relevance report`"
            )

    def _try_to_send(self) -> None:
        """Open the run if it is not open, and send the queue."""

        def send_all() -> None:
            if not self.is_open:
                self._open()
            while self.waiting:
                self.client.log_batch(self.run_id, metrics=self.waiting[:METRICS_PER_CALL])
                del self.waiting[:METRICS_PER_CALL]

        self._attempt(send_all)

    def _open(self) -> None:
        self.client = connect_mlflow(self.config.tracking_uri)
        self.run_id = self._open_run()
        self._log_start(self.run_id)
        if self.command_run_id:  # the newest command that trained this run
            self.client.set_tag(self.run_id, COMMAND_TAG, self.command_run_id)
        self.is_open = True
        self.monitor = start_system_monitor(self.run_id, SYSTEM_EVERY_S)

    def _queue(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self.waiting += [Metric(name, value, now_ms, step) for name, value in values.items()]
        if time.monotonic() - self.last_send_s >= SEND_EVERY_S:
            self.send()

    def _attempt(self, work: Callable[[], Any]) -> None:
        """Do `work`; log only when the store is lost and when it is back."""
        try:
            work()
        except Exception as error:
            if self.last_failure_s is None:
                reason = f"MLflow stopped answering ({type(error).__name__})"
                if isinstance(error, RelevanceError):
                    reason = str(error)
                logger.warning(f"  {reason}. Training goes on without it")
            self.last_failure_s = time.monotonic()
            return
        # a store may close a run and take no metrics
        if self.last_failure_s is not None and not self.waiting:
            logger.info("  MLflow answers again and has the metrics that it missed")
            self.last_failure_s = None

    def _open_run(self) -> str:
        """Return the run of this fingerprint: reopened after an interruption, or new."""
        run_id = find_run(self.client, self.config, self.fingerprint)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {"fingerprint": self.fingerprint, "folder": str(self.config.run_dir)}
        return create_run(self.client, self.config, tags)

    def _log_start(self, run_id: str) -> None:
        """Log settings, data and software of the training, once: a resumed run keeps its first values."""
        from mlflow.entities import Param, RunTag

        if "data_gate" in self.client.get_run(run_id).data.tags:  # the tag that is logged last
            return
        settings = self.config.model_dump(mode="json")
        params = [Param(name, text[:MAX_PARAM_CHARS]) for name, text in flatten_settings(settings)]
        report = self.config.validation_dir / "report.json"
        verdict = read_json(report) if report.is_file() else {}
        for start in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        try:
            self.client.log_dict(run_id, settings, "config.yaml")
            self.client.log_dict(run_id, environment(), "environment.json")
            self.client.log_dict(run_id, verdict, "data_gate.json")
        except Exception as error:
            logger.warning(
                f"  MLflow takes no files ({type(error).__name__}); the run has no config, environment and "
                "verdict of the data gate"
            )
        gate = "not run"
        if verdict:
            gate = "passed" if verdict["passed"] else "refused"
        tags = {"data_digest": self.data_digest, "data_gate": gate}
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def flatten_settings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each setting as (a.b, value as text); a list is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten_settings(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value if isinstance(value, str) else canonical_json(value)


def close_run(config: RunConfig, fingerprint: str) -> str | None:
    """Close the run of a finished training whose command was killed, and return its id.

    Returns None if the store does not know the run or does not answer.
    """
    with contextlib.suppress(RelevanceError), translate_mlflow_errors(config.tracking_uri):
        client = connect_mlflow(config.tracking_uri)
        run_id = find_run(client, config, fingerprint)
        if run_id is not None and client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id
    return None
