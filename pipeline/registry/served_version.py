"""Checks of a registered version that MLflow serves, before anything of it is used.

The artifact store alone is not trusted: the registry's tags and the promotion log decide what is served.

MLflow imports the code that a version's MLmodel names. `load_served_model` and `download_served_model` check
the files before MLflow reads them; `pyfunc_model.py` checks them again, when MLflow has imported it.
"""

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import (
    WRONG_FIELDS,
    ConfigError,
    DamagedInputError,
    GateRefusedError,
    RelevanceError,
    summarize_error,
)
from pipeline.names import check_name
from pipeline.registry.mlflow_errors import translate_mlflow_errors
from pipeline.registry.mlflow_internals import limit_database_retries
from pipeline.registry.promotion_entries import champion_line
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.provenance import package_sha256

logger = logging.getLogger(__name__)

LOG_VARIABLE = "RELEVANCE_PROMOTION_LOG"  # folder of the model's promotion log

WITHOUT_LOG = "none"  # value of LOG_VARIABLE: serve without a log

LOADER = "pipeline.registry.pyfunc_model"  # module that MLflow imports

FILES = "artifacts"  # folder of a version's files, in `data` of MLflow's model

BUNDLE_DIR = "bundle"  # among these files

FLAVOR = "python_function"  # name that MLflow gives models in Python

# settings of the flavor that registration writes
FLAVOR_KEYS = {"code", "data", "env", "loader_module", "python_version", "streamable"}


@dataclass(frozen=True)
class RecordedVersion:
    """Facts that registration records in the metadata of MLflow's model."""

    model: str
    bundle_sha256: str
    package_sha256: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | None) -> "RecordedVersion":
        """Parse the metadata of MLflow's model.

        Raises:
            DamagedInputError: `relevance register` did not write it.
        """
        try:
            recorded = cls(**(metadata or {})["relevance"])
            check_name(recorded.model, "model")
            if not re.fullmatch("[0-9a-f]{64}", recorded.bundle_sha256):
                raise ValueError("bundle_sha256 is no sha256")
        except (LookupError, TypeError, ValueError, ConfigError) as error:
            raise DamagedInputError(
                f"MLmodel does not say which bundle was registered ({error}); register the run again"
            ) from error
        return recorded

    def to_metadata(self) -> dict[str, Any]:
        """Return the recorded form."""
        return {"relevance": asdict(self)}


def load_served_model(uri: str) -> Any:
    """Download a version, check it, and return it as MLflow loads it.

    Args:
        uri: Version in MLflow, such as models:/demo-relevance@champion.

    Raises:
        RelevanceError: The version was altered, is not in the champion line, or computes other probabilities
            here. Nothing of it ran.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as folder:  # the loaded model is in memory
        return mlflow.pyfunc.load_model(str(download_served_model(uri, Path(folder))))


def download_served_model(uri: str, folder: Path) -> Path:
    """Download a version below a folder, check it, and return the folder of MLflow's model.

    Args:
        uri: Version in MLflow, such as models:/demo-relevance@champion.
        folder: New or empty folder that nobody else can write to.

    Raises:
        RelevanceError: The version was altered, or is not in the champion line.
        ConfigError: The folder is not empty, or MLflow does not know the version.
    """
    import mlflow

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"folder is not empty: {folder}; name a new one")
    with translate_mlflow_errors(mlflow.get_registry_uri()):
        model_dir = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    sha256 = check_served_version(model_dir)
    _check_bundle(model_dir / "data" / FILES / BUNDLE_DIR, sha256)
    return model_dir


def check_served_version(model_dir: Path) -> str:
    """Check that a model may be served, and return the sha256 that its bundle must have.

    Args:
        model_dir: Folder of MLflow's model, as downloaded.

    Raises:
        DamagedInputError: It differs from what registration recorded.
        GateRefusedError: It is not in the champion line.
        ConfigError: No promotion log is known, or none can be read.
    """
    recorded = _read_recorded(model_dir)
    registered = _find_registered(recorded)
    if registered is None and LOG_VARIABLE not in os.environ:
        raise ConfigError(
            f"no registry knows the served version of {recorded.model}; set MLFLOW_TRACKING_URI to its "
            f"registry, or {LOG_VARIABLE} to the folder of its promotion log ({WITHOUT_LOG}: serve without)"
        )
    folder = os.environ.get(LOG_VARIABLE) or (registered.tags.get("promotion_log", "") if registered else "")
    if folder == WITHOUT_LOG:
        logger.warning("model %s served without its promotion log: %s is set", recorded.model, LOG_VARIABLE)
    else:
        _check_champion_line(recorded, Path(folder), registered.client if registered else None)
    if recorded.package_sha256 != package_sha256():
        logger.warning(
            "package differs from the one that registered the version: sha256 %s, recorded %s; canary rows "
            "decide",
            package_sha256()[:12],
            recorded.package_sha256[:12],
        )
    return recorded.bundle_sha256


def _check_bundle(bundle_dir: Path, sha256: str) -> None:
    """Raise DamagedInputError unless a folder is the whole bundle with this digest."""
    from pipeline.inference.bundle_description import read_described_bundle  # imports torch

    read_described_bundle(bundle_dir, sha256)


def _read_recorded(model_dir: Path) -> RecordedVersion:
    """Return what registration recorded in a model's folder.

    Raises:
        DamagedInputError: Its MLmodel names other code than the installed package, or was not made by
            `relevance register`.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from yaml import YAMLError

    try:
        model = Model.load(str(model_dir))
        foreign = _find_foreign(model.flavors)
    except (OSError, *WRONG_FIELDS, MlflowException, YAMLError) as error:
        raise DamagedInputError(
            f"{model_dir} has no MLmodel that can be read ({summarize_error(error)}); register the run again"
        ) from error
    if foreign:
        raise DamagedInputError(
            f"{model_dir} names code or files that registration does not: {foreign}; only the installed "
            "package is run, register the run again"
        )
    return RecordedVersion.from_metadata(model.metadata)


def _find_foreign(flavors: Mapping[str, Any]) -> str:
    """Return what the flavors of an MLmodel say that registration does not; empty if there is nothing."""
    flavor = flavors.get(FLAVOR, {})
    expected = {"loader_module": LOADER, "data": f"data/{FILES}"}
    differing = [f"{key} {flavor.get(key)!r}" for key, value in expected.items() if flavor.get(key) != value]
    if flavor.get("code"):
        differing.append(f"code {flavor['code']!r}")
    unknown = [*(flavors.keys() - {FLAVOR}), *(flavor.keys() - FLAVOR_KEYS)]
    return ", ".join([*differing, *sorted(map(str, unknown))])


@dataclass(frozen=True)
class _Registered:
    """The served version in the registry in force."""

    client: Any  # of MLflow
    tags: Mapping[str, str]


def _find_registered(recorded: RecordedVersion) -> _Registered | None:
    """Return the served version in the registry in force; None if that does not know its model.

    Raises:
        DamagedInputError: The registry knows the model, and no version of it with this bundle.
        RelevanceError: The registry does not answer, and no promotion log is named.
    """
    import mlflow

    if not mlflow.is_tracking_uri_set():  # MLflow would make a database in the present folder
        return None
    try:
        with translate_mlflow_errors(mlflow.get_registry_uri()):
            limit_database_retries()
            client, of_model = mlflow.MlflowClient(), f"name = '{recorded.model}'"
            versions = client.search_model_versions(
                f"{of_model} and tags.bundle_sha256 = '{recorded.bundle_sha256}'"
            )
            if not versions and client.search_model_versions(of_model, max_results=1):
                raise DamagedInputError(
                    f"no version of {recorded.model} in the registry has bundle "
                    f"{recorded.bundle_sha256[:12]}; its artifacts were altered, register the run again"
                )
    except RelevanceError as error:
        if isinstance(error, DamagedInputError) or os.environ.get(LOG_VARIABLE, WITHOUT_LOG) == WITHOUT_LOG:
            raise
        logger.warning("registry not asked, the promotion log decides: %s", error)
        return None
    return _Registered(client, versions[0].tags) if versions else None


def _check_champion_line(recorded: RecordedVersion, folder: Path, client: Any) -> None:
    """Check that the promotion log allows to serve a bundle.

    Args:
        recorded: Names model and bundle.
        folder: Folder of the log.
        client: Client of the registry that knows the model, to compare the log with; None without one.

    Raises:
        ConfigError: The log cannot be read.
        DamagedInputError: It is damaged, or lacks promotions that the registry knows of.
        GateRefusedError: The bundle is neither the champion's nor one that a rollback returns to.
    """
    remedy = f"set {LOG_VARIABLE} to its folder ({WITHOUT_LOG}: serve without it)"
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"promotion log of {recorded.model} is not here: {folder}; mount it, or {remedy}")
    try:
        log = PromotionLog(folder, recorded.model)
        line = champion_line(log.read(client) if client else log.read_files())
    except OSError as error:
        raise ConfigError(f"promotion log of {recorded.model} cannot be read ({error}); {remedy}") from error
    if recorded.bundle_sha256 not in {entry.bundle_sha256 for entry in line}:
        raise GateRefusedError(
            f"bundle {recorded.bundle_sha256[:12]} is neither the champion of {recorded.model} nor one that "
            f"a rollback returns to: {folder}; promote its version, or set {LOG_VARIABLE}={WITHOUT_LOG}"
        )
