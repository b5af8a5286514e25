"""Checks of a backbone against a config before a worker starts. They read no weights."""

import functools
from pathlib import Path
from typing import Any

from models.adapters.injection import find_targets
from models.backbone import (
    BackboneUnavailableError,
    load_tokenizer,
    resolve_folder,
    word_token_ids,
)
from models.config import AdapterConfig, BackboneConfig
from models.trial import AdapterTrialError, try_adapters
from models.trunks import build_meta_trunk, max_positions
from pipeline.config.encoding import EncodeConfig
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ConfigError
from pipeline.runtime.waiting import announce_wait
from pipeline.storage.filesystem import cached_sha256


def check_backbone(
    backbone: BackboneConfig, adapter: AdapterConfig, encode: EncodeConfig, tasks: tuple[Task, ...]
) -> Path:
    """Return the backbone's folder.

    Raises:
        ConfigError: The backbone is not available, lacks a target module, cannot take the encoded rows, or
            cannot train adapters on some of the configured linears, or has rows that depend on padding.
    """
    try:
        with announce_wait(f"the files of backbone {backbone.source}"):
            folder = resolve_folder(backbone)
        trunk = build_meta_trunk(folder)
        find_targets(trunk, adapter)
        encoder = Encoder(load_tokenizer(folder), tasks, encode)
    except (BackboneUnavailableError, ValueError) as error:
        raise ConfigError(str(error)) from error
    check_positions(trunk, encode)
    check_token_ids(trunk, encoder, folder)
    try:
        _try_adapters_once(folder, cached_sha256(folder / "config.json"), adapter)
    except (AdapterTrialError, BackboneUnavailableError) as error:
        raise ConfigError(str(error)) from error
    return folder


@functools.cache
def _try_adapters_once(folder: Path, config_sha256: str, adapter: AdapterConfig) -> None:
    """Try adapters once per process: `relevance run` checks before the import and in `plan_training`."""
    try_adapters(folder, adapter)


def check_positions(trunk: Any, encode: EncodeConfig) -> None:
    """Raise ConfigError if rows may have more tokens than a trunk has positions."""
    limit = max_positions(trunk)
    if limit is not None and encode.max_tokens > limit:
        raise ConfigError(
            f"encode.max_tokens is {encode.max_tokens}, the backbone takes {limit} "
            f"(max_position_embeddings); set it to {limit} or less, or use a backbone with more positions"
        )


def check_token_ids(trunk: Any, encoder: Encoder, folder: Path) -> None:
    """Raise ConfigError if a row, a template or the padding may get a token id without an embedding."""
    num_embeddings = trunk.get_input_embeddings().weight.shape[0]
    largest = largest_token_id(encoder)
    if largest >= num_embeddings:
        raise ConfigError(
            f"tokenizer of {folder} has {len(encoder.tokenizer)} tokens, the model has {num_embeddings} "
            f"embeddings, and token {largest} would be used; use the tokenizer of the model's training"
        )


def largest_token_id(encoder: Encoder) -> int:
    """Return the largest token id that rows, templates or the padding can have.

    A tokenizer may have added tokens beyond it, such as Gemma's for images: rows never get those.
    """
    tokenizer = encoder.tokenizer
    template_ids = [token for parts in encoder.segments.values() for part in parts for token in part.ids]
    special_ids = [tokenizer.pad_token_id or 0, tokenizer.unk_token_id or 0]
    return max(*word_token_ids(tokenizer), *encoder.prefix, *encoder.suffix, *template_ids, *special_ids)
