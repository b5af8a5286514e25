"""Config block of the train, valid and test split."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.strict_model import Frozen

Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class SplitConfig(Frozen):
    """Shares of the query space; what is left of 1 trains."""

    valid_share: float = Field(default=0.1, gt=0, lt=1)  # for calibration, thresholds and early decisions
    test_share: float = Field(default=0.2, gt=0, lt=1)  # for the figures that are reported, nothing else

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> "SplitConfig":
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share must stay below 1: nothing would be left to train on")
        return self
