"""Trial of adapter configs on small random models of an architecture."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.lora import LoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.config import AdapterConfig
from models.folder_checks import BackboneUnavailableError
from models.trial import AdapterTrialError, shortest_suffix, try_adapters
from models.trunks import build_small_trunk

UNUSUAL: dict[str, dict[str, Any]] = {  # of published models
    "dbrx": {  # settings of heads and experts in nested configs
        "d_model": 6144,
        "n_heads": 48,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "esm": {  # fewer tokens than most models have control tokens
        "vocab_size": 33,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "hidden_size": 320,
        "num_attention_heads": 20,
        "position_embedding_type": "rotary",
        "token_dropout": True,
    },
}


def write_config(folder: Path, model_type: str) -> Path:
    """Write the config of an architecture at its usual sizes with few layers; there are no weights."""
    from transformers import CONFIG_MAPPING

    settings = UNUSUAL.get(model_type, {})
    config: Any = CONFIG_MAPPING[model_type](**{"num_hidden_layers": 2, **settings})
    config.save_pretrained(folder)
    return folder


ALL = "all-linear"


@pytest.mark.parametrize(
    ("model_type", "config"),
    (
        ("llama", MTLLoRAConfig(target_modules=ALL, task_layers=1)),
        ("gpt2", MTLLoRAConfig(target_modules=ALL)),
        ("bert", MTLLoRAConfig(target_modules=ALL)),
        ("opt", LoRAConfig(target_modules=ALL)),
        ("qwen2_moe", LoRAConfig(target_modules=ALL)),
    ),
)
def test_adapters_that_can_be_trained_pass(tmp_path: Path, model_type: str, config: AdapterConfig) -> None:
    try_adapters(write_config(tmp_path, model_type), config)


@pytest.mark.parametrize(
    ("model_type", "config", "linears", "remedy"),
    (
        (
            "dbrx",
            MTLLoRAConfig(target_modules=ALL),
            ("blocks.*.ffn.router.layer",),
            "set adapter.exclude_modules: [layer]",
        ),
        (
            "opt",
            MTLLoRAConfig(target_modules=ALL, exclude_modules=("k_proj",)),
            ("decoder.layers.*.fc1", "decoder.layers.*.fc2"),
            "set adapter.exclude_modules: [k_proj, fc1, fc2]",
        ),
        (
            "opt",
            MTLLoRAConfig(target_modules=("q_proj", "fc2")),
            ("decoder.layers.*.fc2",),
            "remove fc2 from adapter.target_modules",
        ),
        (
            "qwen2_moe",
            MTLLoRAConfig(target_modules=ALL),
            ("layers.*.mlp.shared_expert.gate_proj", "layers.*.mlp.shared_expert_gate"),
            "exclude_modules: [gate_proj, up_proj, down_proj, shared_expert_gate] (down_proj and "
            "gate_up_proj of all experts are one tensor each, which is not adapted)",
        ),
        (
            "jamba",
            LoRAConfig(target_modules=ALL),
            ("layers.*.mamba.dt_proj",),
            "(the architecture reads its weight itself); set adapter.exclude_modules: [dt_proj]",
        ),
        (
            "mamba",
            LoRAConfig(target_modules=("x_proj",)),
            ("layers.*.mixer.x_proj",),
            "use other adapter.target_modules, another adapter.method or another backbone",
        ),
    ),
)
def test_linears_that_cannot_be_trained_are_named_with_the_remedy(
    tmp_path: Path, model_type: str, config: AdapterConfig, linears: Sequence[str], remedy: str
) -> None:
    with pytest.raises(AdapterTrialError) as raised:
        try_adapters(write_config(tmp_path, model_type), config)
    assert all(name in str(raised.value) for name in linears)
    assert remedy in str(raised.value)


@pytest.mark.parametrize("model_type", UNUSUAL)
def test_architecture_of_unusual_sizes_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str
) -> None:
    with caplog.at_level(logging.WARNING):
        config = MTLLoRAConfig(target_modules=ALL, exclude_modules=("router.layer",))
        try_adapters(write_config(tmp_path, model_type), config)
    assert not caplog.records


@pytest.mark.parametrize("model_type", ("convbert", "fnet", "mobilebert", "nystromformer", "yoso"))
def test_architecture_that_attends_to_padding_is_refused(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(
        BackboneUnavailableError, match=f"rows of this {model_type} depend on the rows beside them"
    ):
        try_adapters(write_config(tmp_path, model_type), MTLLoRAConfig(target_modules=ALL))


def test_linears_without_a_gradient_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x))))
    with pytest.raises(AdapterTrialError, match=r"layers\.\*\.mlp\.up_proj cannot be trained \(no gradient"):
        try_adapters(write_config(tmp_path, "llama"), LoRAConfig(target_modules=ALL))


def test_architecture_that_fails_in_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def fail_in_training(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise NotImplementedError("the kernel has no backward pass")
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", fail_in_training)
    with pytest.raises(AdapterTrialError, match="cannot be trained: the kernel has no backward pass"):
        try_adapters(write_config(tmp_path, "llama"), LoRAConfig())


def test_architecture_without_a_small_model_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("models.trial.MAX_PARAMETERS", 1000)
    with caplog.at_level(logging.WARNING):
        try_adapters(write_config(tmp_path, "opt"), MTLLoRAConfig(target_modules=ALL))
    assert "not tried before workers start: no small model (its small model has" in caplog.text


def test_own_widths_are_tried_where_small_ones_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("models.shrinking._ConfigShrinker.is_part", lambda _: False)
    monkeypatch.setitem(UNUSUAL["dbrx"], "d_model", 768)
    monkeypatch.setitem(UNUSUAL["dbrx"]["ffn_config"], "ffn_hidden_size", 128)
    folder = write_config(tmp_path, "dbrx")
    with pytest.raises(RuntimeError, match="must match"):
        build_small_trunk(folder, 10**9)(torch.arange(5, 9)[None])
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(AdapterTrialError, match=r"blocks\.\*\.ffn\.router\.layer cannot be trained"),
    ):
        try_adapters(folder, MTLLoRAConfig(target_modules=ALL))
    assert not caplog.records


def test_trial_keeps_random_state_and_threads(tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    try_adapters(write_config(tmp_path, "llama"), LoRAConfig())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_shortest_suffix_selects_no_other_linear() -> None:
    others = ["layers.0.attn.out_proj", "layers.1.mamba.in_proj"]
    assert shortest_suffix("layers.1.mamba.out_proj", others) == "mamba.out_proj"
    assert shortest_suffix("layers.1.mamba.dt_proj", others) == "dt_proj"
