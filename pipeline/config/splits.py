"""Config block of the train, valid and test splits."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.strict_model import StrictModel

Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class SplitConfig(StrictModel):
    """Shares of the queries for validation and test; the rest is for training."""

    # share for calibration, thresholds and early stopping
    valid_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)  # share for the reported metrics only

    @model_validator(mode="after")
    def _check_train_share(self) -> "SplitConfig":
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                "valid_share + test_share must stay below 1; otherwise no row is left for training"
            )
        return self
