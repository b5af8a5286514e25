"""Files of registered versions on this machine: fetched once, verified by whoever reads them."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RetryableError
from pipeline.registry.mlflow_client import mlflow_client, told_errors
from pipeline.registry.model_versions import BUNDLE_ARTIFACT, NOT_THERE, check_registered, check_version
from pipeline.registry.promotion_log import read_promotions, repair_aliases
from pipeline.storage.filesystem import publish_dir, remove_tree, temporary_beside


@dataclass(frozen=True)
class FetchedVersion:
    """A registered version and its files on this machine, with the sha256 that they must have."""

    version: str
    bundle_dir: Path
    bundle_sha256: str
    registry_away: str = ""  # why the registry could not be asked; empty: it was

    @property
    def profile_path(self) -> Path:
        """The profile of the rows it was trained on; a version registered by an older release has none."""
        return self.bundle_dir.parent / "profile.json"

    @property
    def reference_path(self) -> Path:
        """Canary rows and how its scores were spread; a version registered by an older release, or of a
        bundle that was not evaluated, has none.
        """
        return self.bundle_dir.parent / "score_reference.json"


def resolve_champion(config: RunConfig) -> FetchedVersion:
    """The champion's files. ConfigError: nothing was promoted yet."""
    champion = find_champion(config)
    if champion is None:
        raise ConfigError(f"model {config.registry.model} has no champion; run `relevance promote` first")
    return champion


def find_champion(config: RunConfig) -> FetchedVersion | None:
    """The champion's files, fetched once, if there is one; the bundle's sha256 is the promotion log's."""
    log = read_promotions(config)
    if not log:
        return None
    version, sha256 = log[-1]["version"], log[-1]["bundle_sha256"]
    try:
        with told_errors(config):
            repair_aliases(config, mlflow_client(config))
            return fetch_bundle(config, version, sha256)
    except RetryableError as error:
        here = fetched_dir(config, version, sha256).is_dir()
        if here and config.registry.use_fetched_champion:  # the log says which it is: nothing is wanting
            return replace(fetch_bundle(config, version, sha256), registry_away=str(error))
        champion = f"version {version} of {config.registry.model}, the champion by the promotion log"
        # it answers, and is another registry
        kind = ConfigError if getattr(error.__cause__, "error_code", "") in NOT_THERE else RetryableError
        wanting = "is not used without it (registry.use_fetched_champion)" if here else "is not here yet"
        raise kind(f"{champion}, {wanting}, and {error}") from error


def fetch_version(config: RunConfig, version: str) -> FetchedVersion:
    """A version's bundle, fetched once; its sha256 is the registry's. ConfigError: no such version."""
    record = check_version(mlflow_client(config), config.registry.model, version)
    check_registered(record)
    return fetch_bundle(config, str(record.version), record.tags["bundle_sha256"])


def fetch_bundle(config: RunConfig, version: str, sha256: str) -> FetchedVersion:
    """A version's files, downloaded unless they are here. DamagedInputError: the version holds no bundle."""
    import mlflow

    fetched = fetched_dir(config, version, sha256)
    bundle_dir = fetched / "artifacts" / BUNDLE_ARTIFACT
    if not bundle_dir.is_dir():
        mlflow_client(config)  # sets where models:/ is looked up
        remove_tree(fetched)
        staged = temporary_beside(fetched)
        try:
            staged.mkdir()
            mlflow.artifacts.download_artifacts(
                f"models:/{config.registry.model}/{version}", dst_path=str(staged)
            )
            publish_dir(staged, fetched)
        finally:
            remove_tree(staged)
    if not bundle_dir.is_dir():
        raise DamagedInputError(
            f"version {version} of {config.registry.model} holds no bundle; register its bundle again"
        )
    return FetchedVersion(version, bundle_dir, sha256)


def fetched_dir(config: RunConfig, version: str, sha256: str) -> Path:
    """Where a version's files lie on this machine."""
    return config.run_dir / "served" / f"version-{version}-{sha256[:12]}"
