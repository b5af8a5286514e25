"""A tiny random language model with its own tokenizer."""

from pathlib import Path


def write_tiny_llama(folder: Path, seed: int = 0, num_layers: int = 2, width: int = 32) -> Path:
    """Write a random Llama and a byte-level tokenizer as a model folder; return the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["Search query: red shoes\nAd: blue shoes\nIs the ad relevant? Answer: yes no"] * 4
    trainer = BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
