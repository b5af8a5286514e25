"""How much bad data a run may set aside before it is refused, and what becomes of pairs that carry two labels."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.frozen import Frozen


class GateConfig(Frozen):
    """The data gate's settings."""

    max_quarantined_share: float = Field(default=0.02, ge=0, lt=1)  # of a task's rows; more of them bad refuses the run
    max_reason_share: float = Field(default=0.01, ge=0, lt=1)  # of a task's rows, for one reason alone
    label_conflicts: Literal["drop", "majority", "keep"] = "keep"  # the same query and ad with unlike labels: none, the most common, all stay
    reference_profile: Annotated[Path, AfterValidator(Path.absolute)] | None = None  # profile.json of other data, to tell drift from
