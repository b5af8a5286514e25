"""One MLflow run per training, fed live. Training itself never waits for it and never needs it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import RelevanceError
from pipeline.registry.mlflow_client import experiment_id, find_run, mlflow_client, told_errors
from pipeline.registry.provenance import environment
from pipeline.storage.filesystem import canonical_json, read_json

# steps are sent in groups: a request a step would cost more than the step of a small model
SEND_EVERY_S = 2.0

# a store that is away holds up what people see of the training for as long as its answer is waited for
RETRY_EVERY_S = 600.0

MAX_WAITING = 200_000  # figures that are kept for it: some thousand steps

SYSTEM_EVERY_S = 10.0  # between looks at the driver's machine

MAX_PARAM_CHARS = 6000  # of a value that MLflow takes


class RunTracker:
    """Sends one training to MLflow: parameters, config, environment and the data's verdict at its start, then
    steps, evaluations and the load of this machine. A store that does not answer is told of, and asked again
    every RETRY_EVERY_S seconds and at the end: it then gets what it missed, the last MAX_WAITING figures of
    it. A store that takes no files gets the rest.
    """

    def __init__(
        self, config: RunConfig, fingerprint: str, data_digest: str, say: Callable[[str], None]
    ) -> None:
        self.config, self.fingerprint, self.data_digest, self.say = config, fingerprint, data_digest, say
        self.waiting: list[Any] = []
        self.sent_s = time.monotonic()
        self.failed_s: float | None = None  # when the store did not answer last; None: it does
        self.client: Any = None
        self.run_id: str | None = None
        self.system: Any = None
        self.opened = False
        self.send()

    def log_step(self, line: dict[str, Any]) -> None:
        """Queue one step's losses, rates and speed; send when it is time."""
        values = {
            name: line[name]
            for name in ("loss", "learning_rate", "rows_per_s", "tokens_per_s", "gradient_norm", "mfu")
        }
        values |= {f"seconds_{name}": seconds for name, seconds in line["seconds"].items()}
        values |= {f"loss_{name}": loss for name, loss in line["task_losses"].items()}
        values |= {f"gradient_norm_{name}": norm for name, norm in line["group_gradient_norms"].items()}
        self._queue(values, line["step"])

    def log_evaluation(self, line: dict[str, Any]) -> None:
        """Queue an evaluation on the valid split."""
        values = {
            f"valid_{name}_{task}": figures[name]
            for task, figures in line["tasks"].items()
            for name in ("pr_auc", "roc_auc", "log_loss")
        }
        values |= {f"valid_{name}": line[name] for name in ("macro_pr_auc", "macro_log_loss") if name in line}
        self._queue(values, line["evaluated_after"])

    def send(self) -> None:
        """Send what is queued, unless the store did not answer a while ago."""
        self.sent_s = time.monotonic()
        if self.failed_s is None or self.sent_s - self.failed_s >= RETRY_EVERY_S:
            self._try_to_send()
        del self.waiting[:-MAX_WAITING]

    def finish(self, status: str) -> None:
        """Send the rest and close the run: FINISHED, FAILED or KILLED."""
        self._try_to_send()
        if self.system:
            self.system.finish()
        if self.run_id is not None:
            self._trying(lambda: self.client.set_terminated(self.run_id, status))

    def _try_to_send(self) -> None:
        """Open the run if it is not open, and send what is queued."""

        def work() -> None:
            if not self.opened:
                self._open()
            while self.waiting:  # MLflow takes 1,000 metrics a call
                self.client.log_batch(self.run_id, metrics=self.waiting[:1000])
                del self.waiting[:1000]

        self._trying(work)

    def _open(self) -> None:
        """The run, told what it is of."""
        self.run_id = self._open_run()
        self._tell_start()
        self.opened = True
        self.system = self._watch_system()

    def _queue(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self.waiting += [Metric(name, value, now_ms, step) for name, value in values.items()]
        if time.monotonic() - self.sent_s >= SEND_EVERY_S:
            self.send()

    def _trying(self, work: Callable[[], Any]) -> None:
        """Do `work`, or tell that it failed. A store that is lost, and one that is back, is told of once."""
        try:
            work()
        except Exception as error:
            if self.failed_s is None:
                told = (
                    str(error)
                    if isinstance(error, RelevanceError)
                    else f"MLflow stopped answering ({type(error).__name__})"
                )
                self.say(f"  {told}. Training goes on without it")
            self.failed_s = time.monotonic()
            return
        if self.failed_s is not None:
            self.say("  MLflow answers again and has the figures that it missed")
            self.failed_s = None

    def _open_run(self) -> str:
        """The run of this fingerprint: opened again after an interruption, or new."""
        config = self.config
        self.client = mlflow_client(config)
        run_id = find_run(self.client, config, self.fingerprint)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = experiment_id(self.client, config)
        tags = {"fingerprint": self.fingerprint, "folder": str(config.run_dir)}
        return str(self.client.create_run(experiment, run_name=config.name, tags=tags).info.run_id)

    def _tell_start(self) -> None:
        """What was asked for, on which data, with which software: once, as it was when the training began."""
        from mlflow.entities import Param, RunTag

        if "data_gate" in self.client.get_run(self.run_id).data.tags:  # told last
            return
        plain = self.config.model_dump(mode="json")
        params = [Param(name, text[:MAX_PARAM_CHARS]) for name, text in leaves(plain)]
        report = self.config.validation_dir / "report.json"
        verdict = read_json(report) if report.is_file() else {}
        passed = ("passed" if verdict["passed"] else "refused") if verdict else "not run"
        tags = {"data_digest": self.data_digest, "data_gate": passed}
        for start in range(0, len(params), 100):  # MLflow takes 100 parameters a call
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        try:
            self.client.log_dict(self.run_id, plain, "config.yaml")
            self.client.log_dict(self.run_id, environment(), "environment.json")
            self.client.log_dict(self.run_id, verdict, "data_gate.json")
        except Exception as error:
            self.say(
                f"  MLflow takes no files ({type(error).__name__}); the run has no config, environment "
                "and verdict of the data"
            )
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _watch_system(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, sampling_interval=SYSTEM_EVERY_S, resume_logging=True)
        monitor.start()
        return monitor


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Each setting as (a.b, its value as text); a list is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else key)
    else:
        yield where, value if isinstance(value, str) else canonical_json(value)


def close_run(config: RunConfig, fingerprint: str) -> str | None:
    """The run of a finished training, closed if its command was killed before it could; None where the store
    knows none or does not answer.
    """
    with contextlib.suppress(RelevanceError), told_errors(config):
        client = mlflow_client(config)
        run_id = find_run(client, config, fingerprint)
        if run_id is not None and client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id
    return None
