"""Config block of the text encoder."""

from pydantic import Field

from pipeline.config.strict_model import Frozen


class EncodeConfig(Frozen):
    """Limits of the text the model reads."""

    max_query_chars: int = Field(default=200, ge=1)  # characters of the query
    max_ad_chars: int = Field(default=400, ge=1)  # characters of each ad column
    max_tokens: int = Field(default=128, ge=16)  # tokens of the whole text
