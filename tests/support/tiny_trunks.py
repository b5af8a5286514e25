"""Tiny random models and a tokenizer, written as model folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = (
    "[PAD]",
    "[UNK]",
    "yes",
    "Yes",
    "no",
    "No",
    "red",
    "blue",
    "running",
    "shoes",
    "boots",
    "cheap",
    "flight",
    "to",
    "oslo",
)

DECODER_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_tokenizer(folder: Path, renamed: dict[str, str] | None = None) -> None:
    """Write a tokenizer of whole words; `renamed` changes the spelling of some."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel(
            {(renamed or {}).get(word, word): i for i, word in enumerate(WORDS)}, unk_token="[UNK]"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )


def write_model(folder: Path, model: Any) -> Path:
    """Write config.json, model.safetensors and a tokenizer; save_pretrained would import deepspeed."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state: dict[str, torch.Tensor] = {}
    written = set()
    trunk_first = sorted(
        model.state_dict().items(), key=lambda item: not item[0].startswith(model.base_model_prefix)
    )
    for name, tensor in trunk_first:
        if tensor.data_ptr() not in written:  # tied weights are in the file once
            state[name] = tensor.contiguous()
            written.add(tensor.data_ptr())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def tiny_llama(tied: bool, num_tokens: int = len(WORDS), num_layers: int = 2) -> Any:
    """Build a Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_tokens,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=0,
        )
    )


def tiny_bidirectional_llama() -> Any:
    """Build a Llama whose tokens see the ones behind them."""
    model = tiny_llama(tied=True)
    model.config.is_causal = False
    return model


def tiny_gemma3_text(bidirectional: bool) -> Any:
    """Build a Gemma 3 with a window of 4 tokens in its first layer; EmbeddingGemma is bidirectional."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(8)
    shape = {**DECODER_SHAPE, "head_dim": 8}
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(WORDS),
            max_position_embeddings=64,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
            use_bidirectional_attention=bidirectional,
            initializer_range=0.2,
            pad_token_id=0,
            **shape,
        )
    )


def tiny_bert() -> Any:
    """Build a BERT encoder without pooler."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False)


def tiny_opt() -> Any:
    """Build a decoder with learned positions."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(3)
    shape = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
    }
    return OPTForCausalLM(
        OPTConfig(vocab_size=len(WORDS), max_position_embeddings=64, init_std=0.2, pad_token_id=0, **shape)
    )


def tiny_bloom() -> Any:
    """Build a decoder with ALiBi, which takes no positions."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(5)
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=len(WORDS), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, pad_token_id=0
        )
    )


def tiny_mistral() -> Any:
    """Build a decoder with an attention window of 12 tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(4)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=len(WORDS), sliding_window=12, initializer_range=0.2, pad_token_id=0, **DECODER_SHAPE
        )
    )


def tiny_mpt() -> Any:
    """Build a decoder with ALiBi that silently ignores unknown arguments."""
    from transformers import MptConfig, MptForCausalLM

    torch.manual_seed(6)
    return MptForCausalLM(
        MptConfig(
            vocab_size=len(WORDS),
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=64,
            expansion_ratio=2,
            pad_token_id=0,
        )
    )


def tiny_lfm2() -> Any:
    """Build a decoder with convolutions, which mix the tokens of adjacent packed rows."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(7)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "full_attention", "conv", "conv", "full_attention"]
    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=len(WORDS),
            num_hidden_layers=5,
            layer_types=kinds,
            initializer_range=0.2,
            pad_token_id=0,
            **shape,
        )
    )


def tiny_decoder(kind: str, **settings: Any) -> Any:
    """Build a decoder of any architecture whose config has Llama's names, without a padding token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(8)
    shape = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **settings}))


def tiny_gemma3() -> Any:
    """Build a decoder beside a vision tower; the settings of the text lie in a config of their own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_decoder("gemma3_text", head_dim=8).config.to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    )


KINDS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {  # a builder, and linears to adapt
    "llama": (lambda: tiny_llama(tied=True), ("q_proj", "v_proj")),
    "bert": (tiny_bert, ("query", "value")),
    "opt": (tiny_opt, ("q_proj", "v_proj")),
    "bloom": (tiny_bloom, ("dense",)),
    "mpt": (tiny_mpt, ("Wqkv",)),
    "mistral": (tiny_mistral, ("q_proj", "v_proj")),
    "lfm2": (tiny_lfm2, ("q_proj", "v_proj")),
    "bidirectional llama": (tiny_bidirectional_llama, ("q_proj", "v_proj")),
    "gemma3": (lambda: tiny_gemma3_text(bidirectional=False), ("q_proj", "v_proj")),
    "embedding gemma": (lambda: tiny_gemma3_text(bidirectional=True), ("q_proj", "v_proj")),
}

# kinds whose tokens see the ones behind them
BIDIRECTIONAL_KINDS = ("bert", "bidirectional llama", "embedding gemma")
