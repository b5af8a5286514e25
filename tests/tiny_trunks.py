"""Tiny random models with a tokenizer beside them, written the way a downloaded one lies on disk."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = ("[PAD]", "[UNK]", "yes", "Yes", "no", "No", "red", "blue", "running", "shoes", "boots", "cheap", "flight", "to", "oslo")


def write_tokenizer(folder: Path, renamed: dict[str, str] | None = None) -> None:
    """A tokenizer of whole words; `renamed` gives some another spelling."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({(renamed or {}).get(word, word): i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def write_model(folder: Path, model: Any) -> Path:
    """config.json, model.safetensors and a tokenizer. save_pretrained would do, but imports deepspeed on the way."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tied = model.config.tie_word_embeddings
    state = {name: t.contiguous() for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def tiny_llama(tied: bool, num_tokens: int = len(WORDS)) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_tokens,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=0,
        )
    )


def tiny_bert() -> Any:
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
