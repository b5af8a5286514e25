"""The part of a run's config that is about batch scoring, and places that rows and labels may be at."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.config.strict_model import Frozen
from pipeline.names import is_bucket


def as_place(value: Any) -> Any:
    """A folder's absolute path, or s3://bucket/prefix as it is written."""
    if isinstance(value, str) and "://" in value and not is_bucket(value):
        raise ValueError(f"{value} is no place known here; write a folder, or s3://bucket/prefix")
    return value if is_bucket(value) else Path(value).absolute() if isinstance(value, str | Path) else value


Place = Annotated[Path | str, BeforeValidator(as_place)]


class ScoringConfig(Frozen):
    """How the batch job scores."""

    # where labels are published, a folder or s3://bucket/prefix; default: scores in the work folder
    scores: Place | None = None
    num_actors: int = Field(default=1, ge=1)  # scoring processes, each with a model of its own
    threads_per_actor: int = Field(default=2, ge=1)  # CPU threads of one
    use_gpu: bool = False  # one GPU for each actor
    batch_tokens: int = Field(default=4096, ge=64)  # tokens of one forward pass, padding included
    # an actor whose pass takes so long ends itself and is started again
    hang_timeout_s: float = Field(default=600.0, gt=0)
    # that probabilities of canary rows may differ by from those of the version's evaluation
    canary_tolerance: float = Field(default=0.02, gt=0)
    # stability index of a task or market, against the last run or the test rows, that is told
    drift_warn: float = Field(default=0.1, gt=0)
    # the same, that ends the run with exit 1 and keeps it from being read as the last one
    drift_refuse: float | None = Field(default=None, gt=0)
