"""Files of registered versions on this machine, downloaded once and verified by their readers."""

from dataclasses import dataclass, replace
from pathlib import Path

from models.files import publish_dir, remove_tree, temporary_path
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.registry.mlflow_client import connect_mlflow, translate_mlflow_errors
from pipeline.registry.model_versions import (
    BUNDLE_ARTIFACT,
    NOT_FOUND_CODES,
    check_registered,
    get_version,
)
from pipeline.registry.promotion_log import PromotionLog


@dataclass(frozen=True)
class VersionFiles:
    """Files of a registered version on this machine, with the digest that they must have."""

    version: str
    bundle_dir: Path
    bundle_sha256: str
    registry_error: str = ""  # why the registry did not answer; empty: it did

    @property
    def profile_path(self) -> Path:
        """Profile of the training rows; versions of old releases have none."""
        return self.bundle_dir.parent / "profile.json"

    @property
    def reference_path(self) -> Path:
        """Canary rows and score profiles; versions of old releases or without evaluation have none."""
        return self.bundle_dir.parent / "score_reference.json"


def resolve_champion(config: RunConfig) -> VersionFiles:
    """Return the champion's files.

    Raises:
        ConfigError: There is no champion.
    """
    champion = find_champion(config)
    if champion is None:
        raise ConfigError(f"model {config.registry.model} has no champion; run `relevance promote` first")
    return champion


def find_champion(config: RunConfig) -> VersionFiles | None:
    """Return the champion's files; None if there is no champion.

    The promotion log says which version it is, and its digest. While the registry is unreachable, files
    that were downloaded earlier are used, if registry.use_fetched_champion is true.

    Raises:
        RetryableError: The registry is unreachable, and the files cannot be used without it.
        ConfigError: The registry does not know the champion.
    """
    log = PromotionLog.from_config(config)
    champion = log.champion()
    if champion is None:
        return None
    version, sha256 = champion.version, champion.bundle_sha256
    try:
        with translate_mlflow_errors(config.tracking_uri):
            log.repair_aliases(connect_mlflow(config.tracking_uri))
            return _fetch_bundle(config, version, sha256)
    except RetryableError as error:
        is_downloaded = _version_dir(config, version, sha256).is_dir()
        if is_downloaded and config.registry.use_fetched_champion:
            return replace(_fetch_bundle(config, version, sha256), registry_error=str(error))
        name = f"version {version} of {config.registry.model}, the champion by the promotion log"
        problem = (
            "is not used without it (registry.use_fetched_champion)" if is_downloaded else "is not here yet"
        )
        # A registry that answers without knowing the version is another registry.
        is_unknown = getattr(error.__cause__, "error_code", "") in NOT_FOUND_CODES
        kind = ConfigError if is_unknown else RetryableError
        raise kind(f"{name}, {problem}, and {error}") from error


def fetch_version(config: RunConfig, version: str) -> VersionFiles:
    """Return a version's files; the registry says their digest.

    Raises:
        ConfigError: There is no such version.
    """
    record = get_version(connect_mlflow(config.tracking_uri), config.registry.model, version)
    check_registered(record)
    return _fetch_bundle(config, str(record.version), record.tags["bundle_sha256"])


def _fetch_bundle(config: RunConfig, version: str, sha256: str) -> VersionFiles:
    """Return a version's files, downloaded unless they are here.

    Raises:
        DamagedInputError: The version holds no bundle.
    """
    import mlflow

    fetched = _version_dir(config, version, sha256)
    bundle_dir = fetched / "artifacts" / BUNDLE_ARTIFACT
    if not bundle_dir.is_dir():
        connect_mlflow(config.tracking_uri)  # sets the store of models:/
        remove_tree(fetched)
        staged = temporary_path(fetched)
        try:
            staged.mkdir()
            source = f"models:/{config.registry.model}/{version}"
            mlflow.artifacts.download_artifacts(source, dst_path=str(staged))
            publish_dir(staged, fetched)
        finally:
            remove_tree(staged)
    if not bundle_dir.is_dir():
        raise DamagedInputError(
            f"version {version} of {config.registry.model} holds no bundle; register its bundle again"
        )
    return VersionFiles(version, bundle_dir, sha256)


def _version_dir(config: RunConfig, version: str, sha256: str) -> Path:
    """Return the folder of a version's files."""
    return config.run_dir / "served" / f"version-{version}-{sha256[:12]}"
