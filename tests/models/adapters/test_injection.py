"""Selection of the linears to adapt, and their replacement."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.adapters.dora import DoRAConfig
from models.adapters.injection import adapted_layers, adapter_parameter_count, inject, target_linear_names
from models.adapters.lora import LoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig, MTLLoRALinear
from models.adapters.mtlora import MTLoRAConfig
from models.backbone import Backbone
from models.config import AdapterConfig
from models.shrinking import shrink_config
from models.trunks import build_meta_trunk

FreshBackbone = Callable[..., Backbone]


def test_exactly_the_named_linears_are_adapted(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    inject(trunk, MTLLoRAConfig(target_modules=("q_proj", "down_proj")), num_tasks=2, seed=0)
    parts = ("self_attn.q_proj", "mlp.down_proj")
    assert set(adapted_layers(trunk)) == {f"layers.{layer}.{part}" for layer in (0, 1) for part in parts}


def test_target_may_be_a_full_name(fresh_backbone: FreshBackbone) -> None:
    config = MTLLoRAConfig(target_modules=("layers.1.self_attn.o_proj",))
    assert target_linear_names(fresh_backbone().trunk, config) == ["layers.1.self_attn.o_proj"]


def test_target_named_twice_is_adapted_once(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    inject(trunk, MTLLoRAConfig(target_modules=("q_proj", "self_attn.q_proj")), num_tasks=2, seed=0)
    assert len(adapted_layers(trunk)) == 2


@pytest.mark.parametrize("target", ("query", "proj", "self_attn", "embed_tokens"))
def test_unknown_target_error_lists_the_linears(fresh_backbone: FreshBackbone, target: str) -> None:
    trunk = fresh_backbone().trunk
    with pytest.raises(ValueError, match=target) as raised:
        inject(trunk, MTLLoRAConfig(target_modules=("q_proj", target)), num_tasks=2, seed=0)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(raised.value)
    assert not adapted_layers(trunk)


def test_only_adapters_can_be_trained(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    config = MTLLoRAConfig(rank=2, target_modules=("q_proj", "k_proj"))
    inject(trunk, config, num_tasks=3, seed=0)
    trained = [name for name, parameter in trunk.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4 * 4
    assert {name.rpartition(".")[2] for name in trained} == {"down_RD", "transform", "up_ONR", "mix_TN"}
    num_trainable = sum(parameter.numel() for parameter in trunk.parameters() if parameter.requires_grad)
    assert num_trainable == 2 * (
        MTLLoRALinear.parameter_count(32, 32, 3, config) + MTLLoRALinear.parameter_count(32, 16, 3, config)
    )


@pytest.mark.parametrize(
    ("kind", "targets"), (("llama", ("q_proj", "o_proj", "down_proj")), ("bert", ("query", "dense")))
)
def test_new_adapters_keep_the_trunk_bit_for_bit(
    fresh_backbone: FreshBackbone, kind: str, targets: tuple[str, ...]
) -> None:
    trunk = fresh_backbone(kind).trunk
    ids_BS = torch.arange(2, 14).reshape(3, 4)
    with torch.no_grad():
        before_BSD = trunk(input_ids=ids_BS).last_hidden_state
        routing = inject(trunk, MTLLoRAConfig(target_modules=targets), num_tasks=2, seed=0)
        routing.task = torch.tensor([1, 0, 1])
        assert torch.equal(trunk(input_ids=ids_BS).last_hidden_state, before_BSD)


def test_injection_keeps_biases(fresh_backbone: FreshBackbone) -> None:
    for kind, target, has_bias in (("llama", "q_proj", False), ("bert", "query", True)):
        trunk = fresh_backbone(kind).trunk
        inject(trunk, MTLLoRAConfig(target_modules=(target,)), num_tasks=2, seed=0)
        assert all((layer.base.bias is not None) == has_bias for layer in adapted_layers(trunk).values())


def test_adapters_depend_on_the_seed_alone(fresh_backbone: FreshBackbone) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        trunk = fresh_backbone().trunk
        inject(trunk, MTLLoRAConfig(), num_tasks=2, seed=seed)
        return {name: p for name, p in trunk.named_parameters() if p.requires_grad}

    first, same, other = state(5), state(5), state(6)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(
        torch.equal(first[name], other[name]) for name in first if name.endswith(("down_RD", "mix_TN"))
    )


def test_layers_start_with_different_weights(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    inject(trunk, MTLLoRAConfig(target_modules=("q_proj",)), num_tasks=2, seed=0)
    first, second = adapted_layers(trunk).values()
    assert not torch.equal(first.down_RD, second.down_RD)


def test_all_layers_share_one_routing(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    routing = inject(trunk, MTLLoRAConfig(), num_tasks=2, seed=0)
    assert all(
        isinstance(layer, MTLLoRALinear) and layer.routing is routing
        for layer in adapted_layers(trunk).values()
    )


def test_all_linear_selects_linears_inside_the_layers(
    fresh_backbone: FreshBackbone,
) -> None:
    for kind, per_layer in (("llama", 7), ("bert", 6)):
        trunk = fresh_backbone(kind).trunk
        assert len(target_linear_names(trunk, LoRAConfig(target_modules="all-linear"))) == 2 * per_layer
        trunk.extra_head = torch.nn.Linear(32, 2)
        assert "extra_head" not in target_linear_names(trunk, LoRAConfig(target_modules="all-linear"))


def test_layers_to_transform_selects_layers(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    inject(trunk, LoRAConfig(layers_to_transform=(1,)), num_tasks=2, seed=0)
    assert set(adapted_layers(trunk)) == {f"layers.1.self_attn.{part}_proj" for part in "qkvo"}


@pytest.mark.parametrize(
    ("config", "message"),
    (
        (
            LoRAConfig(layers_to_transform=(0, 2)),
            "adapter.layers_to_transform names layer 2, this backbone has layers 0 to 1; name layers",
        ),
        (MTLLoRAConfig(task_layers=3), "adapter.task_layers is 3, this backbone has 2 layers"),
        (MTLoRAConfig(task_layers=3), "adapter.task_layers is 3, this backbone has 2 layers"),
    ),
)
def test_unknown_layer_is_refused(fresh_backbone: FreshBackbone, config: AdapterConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inject(fresh_backbone().trunk, config, num_tasks=2, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    (
        (
            MTLLoRAConfig(task_layers=1, layers_to_transform=(0,)),
            "leaves out all of the last adapter.task_layers layers",
        ),
        (MTLoRAConfig(layers_to_transform=(0,)), "leaves out all of the last adapter.task_layers layers"),
        (
            LoRAConfig(target_modules=("layers.1.self_attn.q_proj",), layers_to_transform=(0,)),
            "leave no linear of this backbone to adapt",
        ),
        (
            LoRAConfig(target_modules=("q_proj",), exclude_modules=("q_proj",)),
            "exclude_modules leaves out all linears of target 'q_proj'; remove it",
        ),
    ),
)
def test_config_without_effective_targets_is_refused(
    fresh_backbone: FreshBackbone, config: AdapterConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        inject(fresh_backbone().trunk, config, num_tasks=2, seed=0)


def test_all_linear_leaves_out_excluded_linears(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    inject(
        trunk,
        LoRAConfig(target_modules="all-linear", exclude_modules=("mlp.up_proj", "o_proj")),
        num_tasks=2,
        seed=0,
    )
    assert {name.rpartition(".")[2] for name in adapted_layers(trunk)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "gate_proj",
        "down_proj",
    }


def test_task_layers_require_targets_inside_the_layers(fresh_backbone: FreshBackbone) -> None:
    trunk = fresh_backbone().trunk
    trunk.projection = torch.nn.Linear(4, 4)
    with pytest.raises(
        ValueError, match="task_layers needs all of adapter.target_modules inside the backbone's layers"
    ):
        inject(
            trunk, MTLLoRAConfig(target_modules=("q_proj", "projection"), task_layers=1), num_tasks=2, seed=0
        )


@pytest.mark.parametrize(
    "config",
    (
        MTLLoRAConfig(task_layers=1),
        MTLoRAConfig(),
        MTLoRAConfig(mode="matrix", task_layers=2),
        DoRAConfig(target_modules="all-linear"),
    ),
)
def test_adapter_parameter_count_matches_injection(
    llama_dir: Path, fresh_backbone: FreshBackbone, config: AdapterConfig
) -> None:
    planned = adapter_parameter_count(build_meta_trunk(llama_dir), config, 5)
    trunk = fresh_backbone().trunk
    inject(trunk, config, num_tasks=5, seed=0)
    assert planned == sum(parameter.numel() for parameter in trunk.parameters() if parameter.requires_grad)


def small_trunk(model_type: str) -> torch.nn.Module:
    """Return a random trunk of an architecture's default config, with small widths."""
    from transformers import CONFIG_MAPPING, AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(shrink_config(CONFIG_MAPPING[model_type]()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model_type", "layers"),
    (
        ("gemma3", "language_model.layers."),
        ("qwen3_5", "language_model.layers."),
        ("phi4_multimodal", "layers."),
        ("git", "encoder.layer."),
    ),
)
def test_adapters_stay_inside_the_text_layers_of_multimodal_models(model_type: str, layers: str) -> None:
    trunk = small_trunk(model_type)
    names = target_linear_names(trunk, LoRAConfig(target_modules="all-linear"))
    assert names and all(name.startswith(layers) for name in names)
    shared = {name.rpartition(".")[2] for name in names}
    named = target_linear_names(trunk, LoRAConfig(target_modules=tuple(shared)))
    assert [name for name in named if name.startswith(layers)] == names
    assert not any("vision" in name or "audio" in name or "image" in name for name in named)


def test_message_about_fused_experts_says_why_they_are_not_adapted() -> None:
    with pytest.raises(ValueError, match="its linears: k_proj, .*as one tensor, which cannot be adapted"):
        target_linear_names(small_trunk("qwen3_moe"), LoRAConfig(target_modules=("gate_up_proj",)))
