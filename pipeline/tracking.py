"""One MLflow run per training, fed live. Training itself never waits for it and never needs it."""

import time
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import RetryableError
from pipeline.files import canonical_json
from pipeline.logs import Console

SEND_EVERY_S = 2.0  # steps are sent in groups: a request a step would cost more than the step of a small model


def mlflow_client(config: RunConfig) -> Any:
    """An MLflow client on the config's store, with bounded waits. RetryableError: the store does not answer."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(config.tracking_uri)
    client = mlflow.MlflowClient(config.tracking_uri, registry_uri=config.tracking_uri)
    try:
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        where = f"MLflow at {config.tracking_uri}"
        raise RetryableError(f"{where} does not answer ({error}); start it or set registry.tracking_uri, then run again") from error
    return client


def experiment_id(client: Any, config: RunConfig) -> str:
    """The experiment named like the registered model; its artifacts lie in the run's folder when the store is the embedded one."""
    found = client.get_experiment_by_name(config.registry.model)
    if found is not None:
        return str(found.experiment_id)
    location = (config.run_dir / "mlartifacts").as_uri() if config.tracking_uri.startswith("sqlite:") else None
    return str(client.create_experiment(config.registry.model, artifact_location=location))


class RunTracker:
    """Sends one training's parameters and steps to MLflow. A store that fails in mid-run is reported once and then left alone."""

    def __init__(self, config: RunConfig, fingerprint: str, console: Console) -> None:
        self.client = mlflow_client(config)
        self.console = console
        self.run_id = self._open_run(config, fingerprint)
        self.waiting: list[Any] = []
        self.sent_s = time.monotonic()
        self.lost = False

    def log_step(self, record: dict[str, Any]) -> None:
        """Queue one step's losses, rates and speed; send when it is time."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        values = {name: record[name] for name in ("loss", "learning_rate", "rows_per_s", "tokens_per_s", "gradient_norm", "mfu")}
        values |= {f"seconds_{name}": seconds for name, seconds in record["seconds"].items()}
        values |= {f"loss_{name}": loss for name, loss in record["task_losses"].items()}
        values |= {f"gradient_norm_{name}": norm for name, norm in record["group_gradient_norms"].items()}
        self.waiting += [Metric(key, value, now_ms, record["step"]) for key, value in values.items()]
        if time.monotonic() - self.sent_s >= SEND_EVERY_S:
            self.send()

    def send(self) -> None:
        """Send what is queued."""
        batch, self.waiting = self.waiting, []
        self.sent_s = time.monotonic()
        if batch and not self.lost:
            try:
                for start in range(0, len(batch), 1000):  # MLflow takes 1,000 metrics a call
                    self.client.log_batch(self.run_id, metrics=batch[start : start + 1000])
            except Exception as error:
                self.lost = True
                self.console.say(f"  MLflow stopped answering ({type(error).__name__}); training goes on without it")

    def finish(self, status: str) -> None:
        """Send the rest and close the run: FINISHED, FAILED or KILLED."""
        self.send()
        if not self.lost:
            self.client.set_terminated(self.run_id, status)

    def _open_run(self, config: RunConfig, fingerprint: str) -> str:
        """The run of this fingerprint: opened again after an interruption, or new."""
        experiment = experiment_id(self.client, config)
        found = self.client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'", max_results=1)
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        run = self.client.create_run(experiment, run_name=config.name, tags={"fingerprint": fingerprint})
        for block, value in config.model_dump(mode="json").items():
            self.client.log_param(run.info.run_id, block, canonical_json(value)[:6000])
        return str(run.info.run_id)


def find_run(client: Any, config: RunConfig, fingerprint: str) -> str | None:
    """The id of the run of a training, if it was tracked."""
    found = client.search_runs([experiment_id(client, config)], f"tags.fingerprint = '{fingerprint}'", max_results=1)
    return str(found[0].info.run_id) if found else None
