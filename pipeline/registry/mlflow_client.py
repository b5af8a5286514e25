"""A client of MLflow whose errors name what to do."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError

MAX_ERROR_CHARS = 300

REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of 401 and 403


def mlflow_client(config: RunConfig) -> Any:
    """An MLflow client on the config's store, with bounded waits. RetryableError: the store does not answer.
    ConfigError: it refuses the account.
    """
    import mlflow

    mlflow.set_tracking_uri(config.tracking_uri)
    client = mlflow.MlflowClient(config.tracking_uri, registry_uri=config.tracking_uri)
    with told_errors(config):
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def told_errors(config: RunConfig) -> Iterator[None]:
    """While inside, what MLflow raises comes out as RetryableError, or as ConfigError where it refuses the
    account.
    """
    try:
        yield
    except Exception as error:
        if "mlflow" not in sys.modules:
            raise
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        # the latter from artifacts that a server hands on
        if not isinstance(error, MlflowException | RequestException):
            raise
        where, told = f"MLflow at {without_password(config.tracking_uri)}", shortened(str(error))
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = getattr(error, "error_code", None) in REFUSALS or status in (401, 403)
        if refused or any(f"error code {code} " in str(error) for code in (401, 403)):
            cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may"
            raise ConfigError(f"{where} refuses the account ({told}); {cure}") from error
        raise RetryableError(
            f"{where} does not answer as it should ({told}); see to it or set registry.tracking_uri, then "
            "run again"
        ) from error


def without_password(uri: str) -> str:
    """An address as messages show it."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def shortened(text: str) -> str:
    """An error's words on one line; MLflow's may hold a whole page. What was asked stands at the beginning,
    the cause at the end.
    """
    words = " ".join(text.split())
    return (
        words
        if len(words) <= MAX_ERROR_CHARS
        else f"{words[: MAX_ERROR_CHARS // 3]}…{words[-2 * MAX_ERROR_CHARS // 3 :]}"
    )


def experiment_id(client: Any, config: RunConfig) -> str:
    """The experiment named like the registered model; its artifacts lie in the run's folder when the store is
    the embedded one.
    """
    found = client.get_experiment_by_name(config.registry.model)
    if found is not None:
        return str(found.experiment_id)
    location = (
        (config.run_dir / "mlartifacts").as_uri() if config.tracking_uri.startswith("sqlite:") else None
    )
    return str(client.create_experiment(config.registry.model, artifact_location=location))


def find_run(client: Any, config: RunConfig, fingerprint: str) -> str | None:
    """The id of the run of a training in this very folder, if it was tracked: the same training elsewhere has
    its own.
    """
    wanted = f"tags.fingerprint = '{fingerprint}' and tags.folder = '{config.run_dir}'"
    found = client.search_runs([experiment_id(client, config)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def metric_history(client: Any, run_id: str, name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure of a run, in the order of steps."""
    return sorted((float(one.step), float(one.value)) for one in client.get_metric_history(run_id, name))
