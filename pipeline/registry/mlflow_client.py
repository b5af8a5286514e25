"""Client of MLflow whose errors say what to do."""

from pathlib import Path
from typing import Any

from pipeline.config.paths import DATABASE_SCHEMES
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.registry.embedded_database import create_embedded_database
from pipeline.registry.mlflow_errors import translate_connect_errors
from pipeline.registry.mlflow_internals import limit_database_retries
from pipeline.runtime.waiting import announce_wait
from pipeline.uris import hide_credentials


def connect_mlflow(tracking_uri: str) -> Any:
    """Return an MLflow client of a store that answers.

    Raises:
        RelevanceError: The errors of `translate_connect_errors`.
    """
    import mlflow

    place = f"MLflow at {hide_credentials(tracking_uri)}"
    with translate_connect_errors(tracking_uri), announce_wait(f"{place} to answer"):
        _check_database_uri(tracking_uri)
        limit_database_retries()
        create_embedded_database(tracking_uri)
        # For the whole process: model URIs and artifacts are resolved through the global setting only.
        mlflow.set_tracking_uri(tracking_uri)
        client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
        client.search_experiments(max_results=1)
    return client


def find_run(client: Any, config: RunConfig, fingerprint: str) -> str | None:
    """Return the id of the run that tracks a training in the config's run folder.

    An equal training in another folder has a run of its own.
    """
    experiment = _find_experiment(client, config)
    if experiment is None:
        return None
    for run in client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'"):
        if run.data.tags.get("folder") == str(config.run_dir):  # a query cannot hold every path
            return str(run.info.run_id)
    return None


def create_run(client: Any, config: RunConfig, tags: dict[str, str] | None = None) -> str:
    """Create an MLflow run named like the config's run, and return its id."""
    experiment = _find_experiment(client, config)
    if experiment is None:
        location = _artifact_location(config)
        experiment = str(client.create_experiment(config.registry.model, artifact_location=location))
    return str(client.create_run(experiment, run_name=config.name, tags=tags).info.run_id)


def read_metric_history(client: Any, run_id: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of a metric of a run, sorted by step."""
    history = client.get_metric_history(run_id, name)
    return sorted((float(metric.step), float(metric.value)) for metric in history)


def _check_database_uri(tracking_uri: str) -> None:
    """Raise the library's error for the URI of a database that no driver can open.

    It is called before MLflow, which asks some drivers again and again, and makes an sqlite file without
    the driver that the URI names. No connection is made.

    Raises:
        ConfigError: The driver is asynchronous.
    """
    from sqlalchemy import create_engine, make_url

    if tracking_uri.partition("://")[0].partition("+")[0] not in DATABASE_SCHEMES:
        return
    url = make_url(tracking_uri)
    if url.get_dialect().is_async:
        raise ConfigError(
            f"MLflow cannot use the asynchronous driver {url.get_driver_name()}; write "
            f"{url.get_backend_name()}:// in registry.tracking_uri"
        )
    create_engine(url).dispose()


def _find_experiment(client: Any, config: RunConfig) -> str | None:
    """Return the id of the experiment named like the registered model; None if there is none.

    Raises:
        ConfigError: The experiment was deleted.
    """
    name = config.registry.model
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"experiment deleted: {name}; restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}`, or choose another registry.model"
        )
    return str(experiment.experiment_id)


def _artifact_location(config: RunConfig) -> str | None:
    """Return the run folder's artifact folder for the embedded store; None: the server decides."""
    if not config.tracking_uri.startswith("sqlite:"):
        return None
    folder: Path = config.run_dir / "mlartifacts"
    return folder.as_uri()
