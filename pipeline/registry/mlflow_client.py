"""Client of MLflow whose errors say what to do."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError
from pipeline.names import hide_account
from pipeline.registry.mlflow_internals import is_account_refused

MAX_ERROR_CHARS = 300


def connect_mlflow(tracking_uri: str) -> Any:
    """Return an MLflow client of a store that answers.

    Raises:
        RetryableError: The store does not answer.
        ConfigError: The store refuses the account.
    """
    import mlflow

    # For the whole process: model URIs and artifacts are resolved through the global setting only.
    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
    with translate_mlflow_errors(tracking_uri):
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def translate_mlflow_errors(tracking_uri: str) -> Iterator[None]:
    """Turn errors of MLflow into errors with a remedy.

    Raises:
        ConfigError: The store refuses the account.
        RetryableError: Any other error of MLflow.
    """
    try:
        yield
    except Exception as error:
        if "mlflow" not in sys.modules:
            raise
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        # Artifacts that a server passes on raise RequestException.
        if not isinstance(error, MlflowException | RequestException):
            raise
        place, reason = f"MLflow at {hide_account(tracking_uri)}", _shorten(str(error))
        if is_account_refused(error):
            raise ConfigError(
                f"{place} refuses the account ({reason}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD to an account with access"
            ) from error
        raise RetryableError(
            f"{place} does not answer as expected ({reason}); check it or set registry.tracking_uri, then "
            "run again"
        ) from error


def find_run(client: Any, config: RunConfig, fingerprint: str) -> str | None:
    """Return the id of the run that tracks a training in the config's run folder.

    An equal training in another folder has a run of its own.
    """
    experiment = _ensure_experiment(client, config)
    for run in client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'"):
        if run.data.tags.get("folder") == str(config.run_dir):  # a query cannot hold every path
            return str(run.info.run_id)
    return None


def create_run(client: Any, config: RunConfig, tags: dict[str, str] | None = None) -> str:
    """Create an MLflow run named like the config's run, and return its id."""
    experiment = _ensure_experiment(client, config)
    return str(client.create_run(experiment, run_name=config.name, tags=tags).info.run_id)


def read_metric_history(client: Any, run_id: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of a metric of a run, sorted by step."""
    history = client.get_metric_history(run_id, name)
    return sorted((float(metric.step), float(metric.value)) for metric in history)


def _ensure_experiment(client: Any, config: RunConfig) -> str:
    """Return the id of the experiment named like the registered model; create it if it is missing."""
    name = config.registry.model
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, artifact_location=_artifact_location(config)))


def _artifact_location(config: RunConfig) -> str | None:
    """Return the run folder's artifact folder for the embedded store; None: the server decides."""
    if not config.tracking_uri.startswith("sqlite:"):
        return None
    folder: Path = config.run_dir / "mlartifacts"
    return folder.as_uri()


def _shorten(text: str) -> str:
    """Return an error message on one line, cut in the middle: the cause is at its end."""
    line = " ".join(text.split())
    if len(line) <= MAX_ERROR_CHARS:
        return line
    head, tail = MAX_ERROR_CHARS // 3, 2 * MAX_ERROR_CHARS // 3
    return f"{line[:head]}…{line[-tail:]}"
