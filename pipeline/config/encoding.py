"""Config block of the text encoder."""

from pydantic import Field

from pipeline.config.strict_model import StrictModel


class EncodeConfig(StrictModel):
    """Length limits of the model's input text."""

    max_query_chars: int = Field(default=200, ge=1, le=2**20)  # longest query, in characters
    max_ad_chars: int = Field(default=400, ge=1, le=2**20)  # longest text of each ad column, in characters
    max_tokens: int = Field(default=128, ge=16, le=2**20)  # longest input, in tokens
