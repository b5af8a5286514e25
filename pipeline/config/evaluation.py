"""Config block of evaluation and promotion gate."""

from pydantic import Field

from pipeline.config.scoring import ScoringConfig
from pipeline.config.strict_model import StrictModel


class EvaluationConfig(StrictModel):
    """Actors that predict for evaluation, promotion gate and reports; what is not set is as in `scoring`."""

    num_actors: int | None = Field(default=None, ge=1)  # predicting processes, each with its own model
    threads_per_actor: int | None = Field(default=None, ge=1)  # CPU threads per process
    use_gpu: bool | None = None  # one GPU per process
    batch_tokens: int | None = Field(default=None, ge=64)  # tokens of one forward pass, padding included

    def actors(self, scoring: ScoringConfig) -> ScoringConfig:
        """Return the settings of the actors: those of `scoring`, with what is set here in their place."""
        return scoring.model_copy(update=self.model_dump(exclude_none=True))
