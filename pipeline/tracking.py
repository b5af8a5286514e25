"""One MLflow run per training, fed live. Training itself never waits for it and never needs it."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.logs import Console
from pipeline.software import environment
from pipeline.storage.filesystem import canonical_json, read_json

SEND_EVERY_S = 2.0  # steps are sent in groups: a request a step would cost more than the step of a small model
RETRY_EVERY_S = 600.0  # a store that is away holds up what people see of the training for as long as its answer is waited for
MAX_WAITING = 200_000  # figures that are kept for it: some thousand steps
SYSTEM_EVERY_S = 10.0  # between looks at the driver's machine
MAX_PARAM_CHARS = 6000  # of a value that MLflow takes
MAX_ERROR_CHARS = 300
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of 401 and 403


def mlflow_client(config: RunConfig) -> Any:
    """An MLflow client on the config's store, with bounded waits. RetryableError: the store does not answer. ConfigError: it refuses the account."""
    import mlflow

    mlflow.set_tracking_uri(config.tracking_uri)
    client = mlflow.MlflowClient(config.tracking_uri, registry_uri=config.tracking_uri)
    with told_errors(config):
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def told_errors(config: RunConfig) -> Iterator[None]:
    """While inside, what MLflow raises comes out as RetryableError, or as ConfigError where it refuses the account."""
    try:
        yield
    except Exception as error:
        if "mlflow" not in sys.modules:
            raise
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        if not isinstance(error, MlflowException | RequestException):  # the latter from artifacts that a server hands on
            raise
        where, told = f"MLflow at {without_password(config.tracking_uri)}", shortened(str(error))
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = getattr(error, "error_code", None) in REFUSALS or status in (401, 403)
        if refused or any(f"error code {code} " in str(error) for code in (401, 403)):
            cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may"
            raise ConfigError(f"{where} refuses the account ({told}); {cure}") from error
        raise RetryableError(f"{where} does not answer as it should ({told}); see to it or set registry.tracking_uri, then run again") from error


def without_password(uri: str) -> str:
    """An address as messages show it."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def shortened(text: str) -> str:
    """An error's words on one line; MLflow's may hold a whole page. What was asked stands at the beginning, the cause at the end."""
    words = " ".join(text.split())
    return words if len(words) <= MAX_ERROR_CHARS else f"{words[: MAX_ERROR_CHARS // 3]}…{words[-2 * MAX_ERROR_CHARS // 3 :]}"


def experiment_id(client: Any, config: RunConfig) -> str:
    """The experiment named like the registered model; its artifacts lie in the run's folder when the store is the embedded one."""
    found = client.get_experiment_by_name(config.registry.model)
    if found is not None:
        return str(found.experiment_id)
    location = (config.run_dir / "mlartifacts").as_uri() if config.tracking_uri.startswith("sqlite:") else None
    return str(client.create_experiment(config.registry.model, artifact_location=location))


class RunTracker:
    """Sends one training to MLflow: parameters, config, environment and the data's verdict at its start, then steps, evaluations and the load of
    this machine. A store that does not answer is told of, and asked again every RETRY_EVERY_S seconds and at the end: it then gets what it missed,
    the last MAX_WAITING figures of it. A store that takes no files gets the rest."""

    def __init__(self, config: RunConfig, fingerprint: str, data_digest: str, console: Console) -> None:
        self.config, self.fingerprint, self.data_digest, self.console = config, fingerprint, data_digest, console
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
        values = {name: line[name] for name in ("loss", "learning_rate", "rows_per_s", "tokens_per_s", "gradient_norm", "mfu")}
        values |= {f"seconds_{name}": seconds for name, seconds in line["seconds"].items()}
        values |= {f"loss_{name}": loss for name, loss in line["task_losses"].items()}
        values |= {f"gradient_norm_{name}": norm for name, norm in line["group_gradient_norms"].items()}
        self._queue(values, line["step"])

    def log_evaluation(self, line: dict[str, Any]) -> None:
        """Queue an evaluation on the valid split."""
        values = {f"valid_{name}_{task}": figures[name] for task, figures in line["tasks"].items() for name in ("pr_auc", "roc_auc", "log_loss")}
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
                told = str(error) if isinstance(error, RelevanceError) else f"MLflow stopped answering ({type(error).__name__})"
                self.console.say(f"  {told}. Training goes on without it")
            self.failed_s = time.monotonic()
            return
        if self.failed_s is not None:
            self.console.say("  MLflow answers again and has the figures that it missed")
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
            self.console.say(f"  MLflow takes no files ({type(error).__name__}); the run has no config, environment and verdict of the data")
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


def find_run(client: Any, config: RunConfig, fingerprint: str) -> str | None:
    """The id of the run of a training in this very folder, if it was tracked: the same training elsewhere has its own."""
    wanted = f"tags.fingerprint = '{fingerprint}' and tags.folder = '{config.run_dir}'"
    found = client.search_runs([experiment_id(client, config)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def metric_history(client: Any, run_id: str, name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure of a run, in the order of steps."""
    return sorted((float(one.step), float(one.value)) for one in client.get_metric_history(run_id, name))


def close_run(config: RunConfig, fingerprint: str) -> str | None:
    """The run of a finished training, closed if its command was killed before it could; None where the store knows none or does not answer."""
    with contextlib.suppress(RelevanceError), told_errors(config):
        client = mlflow_client(config)
        run_id = find_run(client, config, fingerprint)
        if run_id is not None and client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id
    return None
