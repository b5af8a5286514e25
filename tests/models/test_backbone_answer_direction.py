"""The direction from "no" to "yes" in a backbone's output embeddings."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import (
    BackboneUnavailableError,
    load_backbone,
    load_tokenizer,
)
from tests.support.backbone_folders import config_of, copy_of
from tests.support.tiny_trunks import WORDS, write_tokenizer


def yes_minus_no(
    vectors_VD: torch.Tensor, yes: tuple[str, ...] = ("yes", "Yes"), no: tuple[str, ...] = ("no", "No")
) -> torch.Tensor:
    yes_D, no_D = (
        vectors_VD[[WORDS.index(word) for word in words]].float().mean(dim=0) for words in (yes, no)
    )
    return yes_D - no_D


def test_answer_direction_of_a_tied_model_uses_its_embeddings(llama_dir: Path) -> None:
    backbone = load_backbone(config_of(llama_dir, dtype="bfloat16"))
    embedding_VD = backbone.trunk.embed_tokens.weight
    direction_D = backbone.answer_direction()
    assert direction_D.dtype == torch.float32 and not direction_D.requires_grad
    assert torch.equal(direction_D, yes_minus_no(embedding_VD))


def test_answer_direction_of_an_untied_model_uses_lm_head(untied_llama_dir: Path) -> None:
    backbone = load_backbone(config_of(untied_llama_dir))
    head_VD = load_file(untied_llama_dir / "model.safetensors")["lm_head.weight"]
    direction_D = backbone.answer_direction()
    assert torch.equal(direction_D, yes_minus_no(head_VD))
    assert not torch.allclose(direction_D, yes_minus_no(backbone.trunk.embed_tokens.weight))


@pytest.mark.parametrize("name", ("embed_out.weight", "head.weight", "language_model.lm_head.weight"))
def test_output_embeddings_of_other_families_are_found(
    untied_llama_dir: Path, tmp_path: Path, name: str
) -> None:
    """GPT-NeoX, RWKV and older multimodal models have other names in their files."""
    folder = copy_of(untied_llama_dir, tmp_path / "renamed")
    tensors = load_file(folder / "model.safetensors")
    head_VD = tensors[name] = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_backbone(config_of(folder)).answer_direction(), yes_minus_no(head_VD))


def test_untied_model_without_lm_head_is_refused(untied_llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(untied_llama_dir, tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"lm_head\.weight.*causal"):
        load_backbone(config_of(folder)).answer_direction()


def test_answer_direction_skips_a_common_leading_space_token(llama_dir: Path, tmp_path: Path) -> None:
    """Llama 2's tokenizer splits " yes" into a space token and the word, so the first tokens are equal."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = copy_of(llama_dir, tmp_path / "spaced")
    words = Tokenizer(
        models.WordLevel({" ": 1, **{word: i for i, word in enumerate(WORDS) if i != 1}}, unk_token="[PAD]")
    )
    words.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[PAD]").save_pretrained(folder)
    assert load_tokenizer(folder)(" yes")["input_ids"] == [1, WORDS.index("yes")]
    backbone = load_backbone(config_of(folder))
    assert torch.equal(backbone.answer_direction(), yes_minus_no(backbone.trunk.embed_tokens.weight))


def test_answer_direction_ignores_unknown_spellings(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "lowercase")
    write_tokenizer(folder, {"Yes": "Ja", "No": "Nein"})
    backbone = load_backbone(config_of(folder))
    assert torch.equal(
        backbone.answer_direction(), yes_minus_no(backbone.trunk.embed_tokens.weight, ("yes",), ("no",))
    )


def test_no_answer_direction_when_both_words_are_unknown(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "wordless")
    write_tokenizer(folder, {"yes": "ja", "no": "nein", "Yes": "Ja", "No": "Nein"})
    assert load_backbone(config_of(folder)).answer_direction() is None
