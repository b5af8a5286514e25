"""Config blocks of the data gate and of the promotion gate."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from pipeline.config.extensions import BEHAVIORAL_TESTS, load_behavioral_tests
from pipeline.config.paths import parse_path
from pipeline.config.strict_model import StrictModel

Script = Literal[
    "latin", "greek", "cyrillic", "hebrew", "arabic", "indic", "thai", "hangul", "kana", "han", "other"
]


def parse_profile(value: Any) -> Any:
    """Return "champion" as written and a file as an absolute path; leave other types to pydantic."""
    path = value if value == "champion" else parse_path(value)
    return path.absolute() if isinstance(path, Path) else path


class GateConfig(StrictModel):
    """Limits of the data gate."""

    # share of a task's rows; the gate refuses the data if more are quarantined
    max_quarantined_share: float = Field(default=0.02, ge=0, lt=1)
    max_reason_share: float = Field(default=0.01, ge=0, lt=1)  # the same limit for each single reason
    # expected scripts of queries and titles, by task; a task that is left out may use any
    scripts: dict[str, tuple[Script, ...]] = {}
    # share of a file's queries or titles in unexpected scripts
    max_foreign_share: float = Field(default=0.05, ge=0, lt=1)
    # pairs with different labels: drop them, keep the most common label, or keep all
    label_conflicts: Literal["drop", "majority", "keep"] = "keep"
    # reference for data drift: the champion's training data, or the profile.json of a run
    reference_profile: Annotated[Literal["champion"] | Path, BeforeValidator(parse_profile)] | None = None

    @field_validator("scripts")
    @classmethod
    def _check_scripts(cls, scripts: dict[str, tuple[Script, ...]]) -> dict[str, tuple[Script, ...]]:
        empty = [name for name, task_scripts in scripts.items() if not task_scripts]
        if empty:
            raise ValueError(f"scripts of task {empty[0]} are empty; name a script, or leave the task out")
        return scripts


class PromotionConfig(StrictModel):
    """Limits of a version's metrics against those of the champion."""

    # largest loss of a task's PR-AUC: the low end of the difference's interval must exceed minus this
    task_margin: float = Field(default=0.05, ge=0)
    min_macro_gain: float = 0.0  # smallest gain of the macro PR-AUC
    calibration_margin: float = Field(default=0.02, ge=0)  # largest gain of a task's calibration error
    # largest loss of a slice's PR-AUC: the high end of the difference's interval must exceed minus this
    slice_margin: float = Field(default=0.1, ge=0)
    min_speed_ratio: float = Field(default=0.8, gt=0)  # smallest ratio of rows per second to the champion's
    # largest mean change of the probability, by behavioral test (pipeline/evaluation/behavioral_tests.py); a
    # test that is left out has its default tolerance
    tolerances: dict[str, float] = {}

    @field_validator("tolerances")
    @classmethod
    def _check_test_names(cls, tolerances: dict[str, float]) -> dict[str, float]:
        if tolerances:
            load_behavioral_tests()
        unknown = [name for name in tolerances if name not in BEHAVIORAL_TESTS]
        if unknown:
            known = ", ".join(BEHAVIORAL_TESTS.names())
            raise ValueError(f"behavioral test is unknown: {unknown[0]!r}; known: {known}")
        return tolerances
