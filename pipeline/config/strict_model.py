"""Base class of config blocks, and the name check in the form pydantic reports."""

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError
from pipeline.names import check_name


class StrictModel(BaseModel):
    """Immutable model that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, allow_inf_nan=False)


def validate_name(name: str, kind: str) -> str:
    """Return a valid name unchanged; raise ValueError, which pydantic reports with the setting."""
    try:
        return check_name(name, kind)
    except ConfigError as error:
        raise ValueError(str(error)) from error
