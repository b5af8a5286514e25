"""Files of registered versions on this machine: downloaded once, and again if they are damaged."""

import logging
from dataclasses import dataclass
from pathlib import Path

from models.files import publish_dir, remove_tree, sync_tree, temporary_path
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.evaluation.score_reference import read_reference
from pipeline.registry.mlflow_client import connect_mlflow
from pipeline.registry.mlflow_errors import translate_mlflow_errors
from pipeline.registry.model_versions import (
    NOT_FOUND_CODES,
    check_registered,
    get_version,
)
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.served_version import BUNDLE_DIR, FILES
from pipeline.runtime.waiting import announce_wait, hold_lock
from pipeline.storage.filesystem import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionFiles:
    """Files of a registered version on this machine, with the digest that they must have."""

    version: str
    bundle_dir: Path
    bundle_sha256: str

    @property
    def folder(self) -> Path:
        """Everything that was downloaded."""
        return self.bundle_dir.parents[2]

    @property
    def profile_path(self) -> Path:
        """Profile of the training rows; a version may have none."""
        return self.bundle_dir.parent / "profile.json"


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
        DamagedInputError: The promotion log is not whole.
        RetryableError: The registry is unreachable, and the files cannot be used without it.
        ConfigError: The registry does not know the champion.
    """
    log = PromotionLog.from_config(config)
    entries = log.read_files()
    try:
        with translate_mlflow_errors(config.tracking_uri):
            entries = log.repair_registry(connect_mlflow(config.tracking_uri))
            return _fetch_bundle(config, entries[-1].version, entries[-1].bundle_sha256) if entries else None
    except (RetryableError, ConfigError) as error:
        if not entries:  # only the registry can tell an empty log from a lost one
            raise
        if isinstance(error, ConfigError) and not _is_unknown_version(error):
            raise
        return _use_fetched(config, entries[-1].version, entries[-1].bundle_sha256, error)


def _is_unknown_version(error: RelevanceError) -> bool:
    """Return True if a registry answered without knowing the version: it is another registry."""
    return getattr(error.__cause__, "error_code", "") in NOT_FOUND_CODES


def _use_fetched(config: RunConfig, version: str, sha256: str, error: RelevanceError) -> VersionFiles:
    """Return the champion's files that are on this machine already, with a warning.

    Raises:
        RetryableError: They cannot be used without the registry, which does not answer.
        ConfigError: They cannot be used, and the registry does not know the version.
    """
    files = _version_files(config, version, sha256)
    damage = _find_damage(files)
    if not damage and config.registry.use_fetched_champion:
        logger.warning(
            "  %s; using version %s, the champion by the promotion log, whose files are on this machine",
            error,
            version,
        )
        return files
    if not damage:
        problem = "is not used without it (registry.use_fetched_champion)"
    else:
        problem = f"is damaged here ({damage})" if files.folder.is_dir() else "is not here yet"
    name = f"version {version} of {config.registry.model}, the champion by the promotion log"
    kind = ConfigError if _is_unknown_version(error) else RetryableError
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
    """Return a version's files, downloaded unless they are here undamaged.

    Raises:
        DamagedInputError: The registry's files are damaged too.
    """
    import mlflow

    files = _version_files(config, version, sha256)
    damage = _find_damage(files)
    if not damage:
        return files
    if files.folder.is_dir():
        logger.warning("fetched version %s damaged: %s; fetching it again", version, damage)
    connect_mlflow(config.tracking_uri)  # sets the store of models:/
    staged = temporary_path(files.folder)
    try:
        staged.mkdir()
        source = f"models:/{config.registry.model}/{version}"
        with announce_wait(f"the files of version {version} of {config.registry.model} from MLflow"):
            mlflow.artifacts.download_artifacts(source, dst_path=str(staged))
        if (staged / FILES).is_dir():  # where the first versions have them
            (staged / "data").mkdir(exist_ok=True)
            (staged / FILES).rename(staged / "data" / FILES)
        sync_tree(staged)
        with hold_lock(files.folder.parent / ".lock", f"another process that publishes version {version}"):
            if _find_damage(files):  # else another command was faster, and may be reading
                publish_dir(staged, files.folder)
    finally:
        remove_tree(staged)
    if damage := _find_damage(files):
        raise DamagedInputError(
            f"version {version} of {config.registry.model} damaged in the registry: {damage}; register its "
            "bundle again"
        )
    return files


def _find_damage(files: VersionFiles) -> str:
    """Return why a version's files are not usable; empty if they are."""
    try:
        read_reference(files.bundle_dir, files.bundle_sha256)
        if files.profile_path.exists():
            read_json(files.profile_path)
    except DamagedInputError as error:
        return str(error).partition(";")[0]
    return ""


def _version_files(config: RunConfig, version: str, sha256: str) -> VersionFiles:
    """Return the places of a version's files, which may be absent."""
    folder = config.run_dir / "served" / f"version-{version}-{sha256[:12]}"
    return VersionFiles(version, folder / "data" / FILES / BUNDLE_DIR, sha256)
