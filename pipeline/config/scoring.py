"""Config block of batch scoring."""

from typing import Literal

from pydantic import Field

from pipeline.config.paths import Location
from pipeline.config.strict_model import StrictModel

WhenUnproven = Literal["abstain", "best_guess"]


class ScoringConfig(StrictModel):
    """Actors, batches and drift limits of the batch scoring job."""

    # location of the published labels, a folder or s3://bucket/prefix; default: scores in the run's folder
    scores: Location | None = None
    num_actors: int = Field(default=1, ge=1)  # scoring processes, each with its own model
    threads_per_actor: int = Field(default=2, ge=1)  # CPU threads per scoring process
    use_gpu: bool = False  # one GPU per scoring process
    batch_tokens: int = Field(default=4096, ge=64)  # tokens of one forward pass, padding included
    # seconds for one forward pass after which an actor ends itself and is restarted
    hang_timeout_s: float = Field(default=600.0, gt=0)
    # decision of rows where the valid split cannot prove the task's target precision
    when_unproven: WhenUnproven = "abstain"
    # largest difference of canary probabilities from those of the version's evaluation
    canary_tolerance: float = Field(default=0.02, gt=0)
    # population stability index (PSI) of a task or market above which the run warns
    drift_warn: float = Field(default=0.1, gt=0)
    # PSI above which the run ends with exit code 1 and is not used as the latest run
    drift_refuse: float | None = Field(default=None, gt=0)
