"""Properties of a trunk from its config alone: modules and shapes, pooling, width, longest row."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.folder_checks import BackboneUnavailableError
from models.heads import Pooling, sees_later_tokens
from models.shrinking import shrink_config


def build_meta_trunk(folder: Path) -> Any:
    """Build a trunk without weights, to read its module names and shapes at no cost in memory or time.

    Raises:
        BackboneUnavailableError: The architecture is not supported, or config.json is not valid.
    """
    trunk_config = read_trunk_config(folder)
    with _explain_config_errors(folder), torch.device("meta"):
        trunk = _build_trunk(trunk_config)
    check_no_logits(trunk, folder)
    return trunk


def check_no_logits(trunk: Any, folder: Path) -> None:
    """Raise BackboneUnavailableError if transformers builds an architecture with vocabulary logits only."""
    if trunk.get_output_embeddings() is not None:
        config = trunk.config
        raise BackboneUnavailableError(
            f"{folder} is a {config.model_type}, which transformers builds with vocabulary logits only; use "
            f"its language model alone ({config.get_text_config().model_type})"
        )


def build_small_trunk(folder: Path, max_parameters: int, keep_widths: bool = False) -> Any:
    """Build a random trunk of a folder's architecture and depth with small widths, or with its own widths.

    Raises:
        ValueError: The trunk has more than `max_parameters`.
    """
    small_config = shrink_config(read_trunk_config(folder), keep_widths)
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in _build_trunk(small_config).parameters())
    if total > max_parameters:
        raise ValueError(f"its small model has {total:,} parameters, the limit is {max_parameters:,}")
    return _build_trunk(small_config).eval()


def trunk_pooling(trunk: Any) -> Pooling:
    """Return the pooling of token states: the last one, or the mean where tokens see later ones."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    is_encoder = type(trunk.config) in MODEL_FOR_MASKED_LM_MAPPING
    return "mean" if is_encoder or sees_later_tokens(trunk) else "last"


def trunk_width(trunk_config: Any) -> int:
    """Return the width of a trunk's last hidden states.

    OPT may project them to the width of its embeddings.
    """
    text_config = trunk_config.get_text_config()
    return int(getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size)


def max_positions(trunk: Any) -> int | None:
    """Return the number of tokens that a trunk was built for; None if nothing limits it.

    Scaled rotary positions may reach further than `max_position_embeddings` of the config.
    """
    config = trunk.config.get_text_config(decoder=True)
    config_limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not config_limit or config_limit < 0:
        return None
    # models like RoBERTa count positions from the one after the padding position
    first_position = max(
        (
            module.padding_idx + 1
            for name, module in trunk.named_modules()
            if isinstance(module, torch.nn.Embedding)
            and "position" in name
            and module.num_embeddings == config_limit
            and module.padding_idx is not None
        ),
        default=0,
    )
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    scaled = [_scaled_positions(scaling, config_limit) for scaling in by_layer_type]
    return max([config_limit - first_position, *scaled])


def _scaled_positions(rope: dict[str, Any], config_limit: int) -> int:
    """Return the number of positions that the settings of rotary positions reach, 0 if they do not say.

    A factor multiplies the positions of pretraining. These are `original_max_position_embeddings`; with
    type `dynamic`, they are the limit in the config. Types `linear` and `proportional` name neither, and
    most configs have a limit that is scaled already.
    """
    rope_type = rope.get("rope_type", "default")
    pretrained = config_limit if rope_type == "dynamic" else rope.get("original_max_position_embeddings")
    if rope_type == "default" or not pretrained:
        return 0
    return int((rope.get("factor") or 1) * pretrained)


def read_trunk_config(folder: Path) -> Any:
    """Return the config of a trunk.

    Raises:
        BackboneUnavailableError: The architecture is not supported, or config.json is not valid.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

    with _explain_config_errors(folder):
        trunk_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    is_supported = any(
        type(trunk_config) in mapping
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
    )
    if not is_supported or getattr(trunk_config, "is_encoder_decoder", False):
        raise BackboneUnavailableError(
            f"{folder} is a {trunk_config.model_type}; use a decoder-only language model or an encoder of "
            "the BERT family"
        )
    return trunk_config


@contextlib.contextmanager
def _explain_config_errors(folder: Path) -> Iterator[None]:
    """Raise BackboneUnavailableError for whatever transformers raises over a value in config.json."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackboneUnavailableError(
            f"config.json of {folder} not valid for transformers: {type(error).__name__}: {reason}; correct "
            "it, or name another backbone"
        ) from error


def _build_trunk(trunk_config: Any) -> Any:
    """Build a trunk with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(trunk_config, trust_remote_code=False, **trunk_options(trunk_config))


def trunk_options(trunk_config: Any) -> dict[str, Any]:
    """Return model arguments that leave out the unused pooler of encoders."""
    if trunk_config.model_type in ("bert", "roberta", "xlm-roberta"):
        return {"add_pooling_layer": False}
    return {}
