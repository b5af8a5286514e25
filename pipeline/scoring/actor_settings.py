"""Settings of the scoring actors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.scoring import ScoringConfig
from pipeline.inference.model_actor import ModelActorSettings
from pipeline.inference.predictor import BundleModel
from pipeline.publishing.unit_store import PublishedFile
from pipeline.registry.version_files import VersionFiles
from pipeline.runtime.run_log import RunLog
from pipeline.scoring.score_cache import find_cached_files
from pipeline.scoring.scoring_record import ALL_MANIFESTS


@dataclass(frozen=True)
class ActorSettings:
    """Settings of one scoring run; Ray sends them to each actor."""

    version: VersionFiles
    scoring: ScoringConfig
    scores_location: Path | str
    cached_files: Mapping[str, Sequence[PublishedFile]]  # by task
    model_actor: ModelActorSettings


def build_actor_settings(
    scoring: ScoringConfig,
    scores_location: Path | str,
    version: VersionFiles,
    attempts_dir: Path,
    log: RunLog | None = None,
    index: str = ALL_MANIFESTS,
) -> ActorSettings:
    """Collect the settings of a run, and look up the label files that it may reuse."""
    return ActorSettings(
        version=version,
        scoring=scoring,
        scores_location=scores_location,
        cached_files=find_cached_files(scores_location, version.bundle_sha256, index),
        model_actor=ModelActorSettings(
            BundleModel(version.bundle_dir, version.bundle_sha256), scoring, attempts_dir, log
        ),
    )
