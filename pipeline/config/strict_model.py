"""Base class of config blocks and recorded forms, and the name check in the form pydantic reports."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError
from pipeline.names import check_name

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # hex SHA-256


class StrictModel(BaseModel):
    """Immutable model that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, allow_inf_nan=False)

    @classmethod
    def from_recorded(cls, fields: Mapping[str, Any]) -> Self:
        """Return the model of a parsed JSON object; pydantic's ValidationError if a value has another type.

        It is validated as JSON: types are strict, and yet a list is a tuple and a whole number a float.
        """
        return cls.model_validate_json(json.dumps(fields), strict=True)


def validate_name(name: str, kind: str) -> str:
    """Return a valid name unchanged; raise ValueError, which pydantic reports with the setting."""
    try:
        return check_name(name, kind)
    except ConfigError as error:
        raise ValueError(str(error)) from error
