"""Checks of backbones without weights: positions, token ids and tokenizers that do not fit a config."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from models.adapters.lora import LoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from pipeline.config.encoding import EncodeConfig
from pipeline.config.tasks import Task
from pipeline.errors import ConfigError
from pipeline.training.backbone_checks import check_backbone
from tests.support.backbone_folders import config_of

SHAPE = {"vocab_size": 400, "num_hidden_layers": 2, "num_attention_heads": 4}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0, "factor": 4.0}
# of Gemma 3: the factor is part of the limit in the config
BY_LAYER_TYPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": LINEAR,
}
# config class and arguments, linears, and the longest row that the backbone takes
BACKBONES: dict[str, tuple[str, dict[str, Any], str, int | None]] = {
    "bert": ("BertConfig", {"max_position_embeddings": 48}, "query", 48),
    "roberta": ("RobertaConfig", {"max_position_embeddings": 50, "pad_token_id": 1}, "query", 48),
    "mpnet": ("MPNetConfig", {"max_position_embeddings": 50, "pad_token_id": 1}, "q", 48),
    "opt": ("OPTConfig", {"max_position_embeddings": 48, "word_embed_proj_dim": 32}, "q_proj", 48),
    "gpt_neo": (
        "GPTNeoConfig",
        {"max_position_embeddings": 48, "attention_types": [[["global"], 2]]},
        "q_proj",
        48,
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", {"n_positions": 48}, "c_proj", 48),
    "llama": ("LlamaConfig", {"max_position_embeddings": 48}, "q_proj", 48),
    "yarn": ("LlamaConfig", {"max_position_embeddings": 48, "rope_parameters": YARN}, "q_proj", 128),
    "linear": ("LlamaConfig", {"max_position_embeddings": 48, "rope_parameters": LINEAR}, "q_proj", 48),
    "linear, pretrained positions known": (
        "LlamaConfig",
        {
            "max_position_embeddings": 48,
            "rope_parameters": {**LINEAR, "original_max_position_embeddings": 24},
        },
        "q_proj",
        96,
    ),
    "dynamic": ("LlamaConfig", {"max_position_embeddings": 48, "rope_parameters": DYNAMIC}, "q_proj", 192),
    "plain with a factor": (
        "LlamaConfig",
        {"max_position_embeddings": 48, "rope_parameters": PLAIN},
        "q_proj",
        48,
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"max_position_embeddings": 48, "rope_parameters": BY_LAYER_TYPE, "num_key_value_heads": 2},
        "q_proj",
        48,
    ),
    "mpt": ("MptConfig", {"max_seq_len": 48}, "Wqkv", 48),
    "bloom": ("BloomConfig", {}, "dense", None),
}


def write_backbone(folder: Path, tokenizer: Path, name: str, **changes: Any) -> Path:
    """Write a config and a tokenizer of 320 tokens, but no weights."""
    class_name, own, _, _ = BACKBONES[name]
    getattr(transformers, class_name)(**{**SHAPE, "hidden_size": 32, **own, **changes}).save_pretrained(
        folder
    )
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def check(folder: Path, linear: str, max_tokens: int = 32, template: str = "Ad: {query} {ad_title}") -> Path:
    task = Task(name="two", labels=("bad", "good"), relevant_from=1, template=template)
    adapter = LoRAConfig(method="lora", target_modules=(linear,))
    return check_backbone(config_of(folder), adapter, EncodeConfig(max_tokens=max_tokens), (task,))


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_longer_than_the_positions_are_refused(tmp_path: Path, tiny_llama: Path, name: str) -> None:
    folder, (_, _, linear, limit) = write_backbone(tmp_path, tiny_llama, name), BACKBONES[name]
    if limit is None:
        assert check(folder, linear, 100_000) == folder
        return
    assert check(folder, linear, limit) == folder
    with pytest.raises(ConfigError, match=f"encode.max_tokens is {limit + 1}, the backbone takes {limit} "):
        check(folder, linear, limit + 1)


def test_tokens_without_embedding_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    folder = write_backbone(tmp_path, tiny_llama, "llama", vocab_size=300)
    with pytest.raises(
        ConfigError, match=r"has \d+ tokens, the model has 300 embeddings, and token \d+ would"
    ):
        check(folder, "q_proj")


@pytest.mark.parametrize("where", ["padding", "template", "nowhere"])
def test_added_tokens_matter_only_where_they_are_used(tmp_path: Path, tiny_llama: Path, where: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    folder = write_backbone(tmp_path, tiny_llama, "llama", vocab_size=len(tokenizer))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    if where == "padding":
        tokenizer.pad_token = "<image>"
    tokenizer.save_pretrained(folder)
    template = "<image> {query} {ad_title}" if where == "template" else "Ad: {query} {ad_title}"
    if where == "nowhere":
        assert check(folder, "q_proj", template=template) == folder
        return
    with pytest.raises(ConfigError, match=f"{len(tokenizer)} tokens, the model has {len(tokenizer) - 1} "):
        check(folder, "q_proj", template=template)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden_act", "swoosh"), ("hidden_size", "wide"), ("num_attention_heads", 0), ("model_type", "swoosh")],
)
def test_config_that_transformers_cannot_build_is_refused(
    tmp_path: Path, tiny_llama: Path, setting: str, value: Any
) -> None:
    folder = write_backbone(tmp_path, tiny_llama, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(
        ConfigError, match=f"config.json of {folder} not valid for transformers: .*; correct it"
    ):
        check(folder, "q_proj")


@pytest.mark.parametrize("name", ["bert", "llama", "gpt_neo"])
def test_folder_without_tokenizer_is_refused_by_name(tmp_path: Path, tiny_llama: Path, name: str) -> None:
    folder = write_backbone(tmp_path, tiny_llama, name)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=f"folder {folder} .*; copy the tokenizer's files"):
        check(folder, BACKBONES[name][2])


def test_linears_that_cannot_be_trained_are_refused_with_the_remedy(tmp_path: Path, tiny_llama: Path) -> None:
    folder = write_backbone(tmp_path, tiny_llama, "opt")
    task = Task(name="two", labels=("bad", "good"), relevant_from=1, template="Ad: {query} {ad_title}")
    adapter = MTLLoRAConfig(target_modules="all-linear")
    with pytest.raises(ConfigError, match=r"layers\.\*\.fc1, .*set adapter.exclude_modules: \[fc1, fc2\]"):
        check_backbone(config_of(folder), adapter, EncodeConfig(max_tokens=32), (task,))
