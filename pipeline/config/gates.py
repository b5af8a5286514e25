"""Settings of the data gate and of the promotion gate."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from pipeline.config.extensions import BEHAVIORAL_TESTS, load_behavioral_tests
from pipeline.config.strict_model import Frozen

Script = Literal[
    "latin", "greek", "cyrillic", "hebrew", "arabic", "indic", "thai", "hangul", "kana", "han", "other"
]


class GateConfig(Frozen):
    """The data gate's settings."""

    # of a task's rows; more of them bad refuses the run
    max_quarantined_share: float = Field(default=0.02, ge=0, lt=1)
    max_reason_share: float = Field(default=0.01, ge=0, lt=1)  # of a task's rows, for one reason alone
    # task -> writing systems its queries and titles are in; a task left out may use any
    scripts: dict[str, tuple[Script, ...]] = {}
    # of a file's queries or titles in other scripts
    max_foreign_share: float = Field(default=0.05, ge=0, lt=1)
    # the same query and ad with unlike labels: none, the most common, all stay
    label_conflicts: Literal["drop", "majority", "keep"] = "keep"
    # what to tell drift from: the data the champion was trained on, or the profile.json of a run
    reference_profile: Literal["champion"] | Annotated[Path, AfterValidator(Path.absolute)] | None = None

    @field_validator("scripts")
    @classmethod
    def _each_task_names_one(cls, scripts: dict[str, tuple[Script, ...]]) -> dict[str, tuple[Script, ...]]:
        empty = [name for name, of_task in scripts.items() if not of_task]
        if empty:
            raise ValueError(f"task {empty[0]} names no script; name one, or leave the task out")
        return scripts


class PromotionConfig(Frozen):
    """How much worse than the champion a version may be, and where it must be better."""

    # PR-AUC a task may lose: the low end of its difference's interval must lie above minus this
    task_margin: float = Field(default=0.05, ge=0)
    min_macro_gain: float = 0.0  # macro PR-AUC the version must gain
    calibration_margin: float = Field(default=0.02, ge=0)  # calibration error a task may gain
    # PR-AUC a slice may lose: the high end of its difference's interval must lie above minus this
    slice_margin: float = Field(default=0.1, ge=0)
    min_speed_ratio: float = Field(default=0.8, gt=0)  # rows a second over the champion's
    # by behavioural test of pipeline/evaluation/behavioral_tests.py: how far, on the mean of a task's rows,
    # it may move the probability, or lift it; one that is left out has its own tolerance
    tolerances: dict[str, float] = {}

    @field_validator("tolerances")
    @classmethod
    def _tests_are_known(cls, tolerances: dict[str, float]) -> dict[str, float]:
        if tolerances:
            load_behavioral_tests()
        unknown = [name for name in tolerances if name not in BEHAVIORAL_TESTS]
        if unknown:
            known = ", ".join(BEHAVIORAL_TESTS.names())
            raise ValueError(f"{unknown[0]!r} is no behavioural test; known: {known}")
        return tolerances
