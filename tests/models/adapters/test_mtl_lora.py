"""Properties of MTL-LoRA alone: LoRA as a special case, initialization, and failures of published code.

All tests use float64 unless they are about a dtype.

Shape legend: B rows, S tokens, D width in, O width out, R rank, N up-projections, T tasks.
"""

from typing import Any

import pytest
import torch
from torch import nn

from models.adapters.mtl_lora import MTLLoRAConfig, MTLLoRALinear
from models.adapters.routing import TaskRouting

B, S, D, O, R, N, T = 6, 4, 5, 7, 3, 2, 4
TASK_B = torch.tensor([2, 0, 2, 1, 0, 2])  # task 3 is absent
TRANSFORMS = ("full", "diagonal")


def build_layer(
    bias: bool = False, num_tasks: int = T, dtype: torch.dtype = torch.float64, **changes: Any
) -> MTLLoRALinear:
    """Build a new layer around a random linear, with the active task ids TASK_B."""
    config = MTLLoRAConfig(
        **{"rank": R, "num_up_projections": N, "lora_alpha": 7.0, "mixture_temperature": 0.3, **changes}
    )
    torch.manual_seed(0)
    routing = TaskRouting()
    routing.task = TASK_B
    return MTLLoRALinear(
        nn.Linear(D, O, bias=bias), num_tasks, config, routing, torch.Generator().manual_seed(1)
    ).to(dtype)


def build_bfloat16_layer(**changes: Any) -> MTLLoRALinear:
    """Build a new layer around a bfloat16 linear."""
    layer = build_layer(dtype=torch.float32, **changes)
    config = MTLLoRAConfig(rank=R, num_up_projections=N, **changes)
    return MTLLoRALinear(
        layer.base.to(torch.bfloat16), T, config, layer.routing, torch.Generator().manual_seed(1)
    )


def build_trained_layer(**options: Any) -> MTLLoRALinear:
    """Build a layer and change every trainable tensor."""
    layer = build_layer(**options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(layer).values():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            )
    return layer


def trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def random_input(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def random_direction() -> torch.Tensor:
    """Return weights of the outputs, so that no gradient is a plain sum."""
    return torch.randn(B, S, O, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_base_weight_is_kept_and_frozen() -> None:
    base = nn.Linear(D, O)
    layer = MTLLoRALinear(base, T, MTLLoRAConfig(), TaskRouting(), torch.Generator())
    assert layer.base is base
    assert not base.weight.requires_grad and not base.bias.requires_grad


def test_one_task_and_up_projection_is_lora_bit_for_bit() -> None:
    # a scale of 2 is exact
    layer = build_layer(num_tasks=1, rank=4, num_up_projections=1, lora_alpha=8.0)
    layer.routing.task = torch.zeros(B, dtype=torch.long)
    with torch.no_grad():
        layer.up_ONR.normal_(generator=torch.Generator().manual_seed(6))
    x_BSD = random_input()
    u_BSR = nn.functional.linear(x_BSD, layer.down_RD)
    lora_BSO = nn.functional.linear(u_BSR, layer.up_ONR[:, 0]) * 2.0
    assert torch.equal(layer(x_BSD), layer.base(x_BSD) + lora_BSO)


def test_one_task_with_one_up_projection_equals_peft_lora() -> None:
    peft = pytest.importorskip("peft")
    layer = build_trained_layer(num_tasks=1, rank=4, num_up_projections=1, lora_alpha=8.0)
    layer.routing.task = torch.zeros(B, dtype=torch.long)
    wrapped = nn.ModuleDict({"proj": nn.Linear(D, O, bias=False, dtype=torch.float64)})
    wrapped["proj"].load_state_dict(layer.base.state_dict())
    lora = peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["proj"]), wrapped)[
        "proj"
    ]
    with torch.no_grad():
        layer.transform.copy_(torch.eye(4).unsqueeze(0))
        lora.lora_A["default"].weight.copy_(layer.down_RD)
        lora.lora_B["default"].weight.copy_(layer.up_ONR[:, 0])
        lora.double()
        torch.testing.assert_close(layer(random_input()), lora(random_input()), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_permuting_rows_with_their_task_ids_permutes_the_outputs(transform: str) -> None:
    layer = build_trained_layer(transform=transform)
    x_BSD = random_input()
    output_BSO = layer(x_BSD)
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    layer.routing.task = TASK_B[order]
    torch.testing.assert_close(layer(x_BSD[order]), output_BSO[order], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_first_step_changes_only_up_projections(transform: str) -> None:
    layer = build_layer(transform=transform)
    (layer(random_input()) * random_direction()).sum().backward()
    assert layer.up_ONR.grad.any()
    for name in ("down_RD", "transform", "mix_TN"):
        assert not trained(layer)[name].grad.any(), name


def test_mixture_weights_sum_to_one() -> None:
    mixture_weights_TN = build_trained_layer().mixture_weights_TN()
    assert (mixture_weights_TN > 0).all()
    torch.testing.assert_close(mixture_weights_TN.sum(dim=1), torch.ones(T, dtype=torch.float64))


@pytest.mark.parametrize("num_up_projections", (1, 2, 5))
def test_scale_is_alpha_over_rank(num_up_projections: int) -> None:
    layer = build_layer(num_up_projections=num_up_projections, lora_alpha=6.0, rank=3)
    with torch.no_grad():
        layer.up_ONR.fill_(1.0)  # weights sum to 1, so equal up-projections act as one
    x_BSD = random_input()
    expected_BSO = layer.base(x_BSD) + 2.0 * (x_BSD @ layer.down_RD.T).sum(dim=-1, keepdim=True)
    torch.testing.assert_close(layer(x_BSD), expected_BSO, rtol=1e-12, atol=1e-12)


def test_initial_weights_depend_on_the_generator_alone() -> None:
    def start(global_seed: int, seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        layer = MTLLoRALinear(
            nn.Linear(D, O), T, MTLLoRAConfig(), TaskRouting(), torch.Generator().manual_seed(seed)
        )
        return torch.cat([parameter.flatten() for parameter in trained(layer).values()])

    assert torch.equal(start(10, seed=1), start(11, seed=1))
    assert not torch.equal(start(10, seed=1), start(10, seed=2))


def test_initial_weights_follow_the_paper() -> None:
    layer = build_layer(dtype=torch.float32)
    assert torch.equal(layer.transform, torch.eye(R).expand(T, R, R))
    assert not layer.up_ONR.any()
    assert 0 < layer.down_RD.abs().max() <= D**-0.5
    assert 0 < layer.mix_TN.abs().max() <= N**-0.5
    assert layer.mix_TN.unique().numel() == T * N


# Failures of published implementations: tau of 0 or logits beyond exp's range, up-projections that start
# and stay equal, a transform kept in bfloat16, a random bias on linears that have none.


def train_steps(
    layer: MTLLoRALinear, num_steps: int, learning_rate: float, dtype: torch.dtype = torch.float64
) -> None:
    optimizer = torch.optim.AdamW(trained(layer).values(), lr=learning_rate, weight_decay=0.0)
    x_BSD, goal_BSO = random_input(dtype), random_direction().to(dtype)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (layer(x_BSD) - goal_BSO).square().mean().backward()
        optimizer.step()


def test_published_failure_linear_without_bias_gets_none() -> None:
    layer = build_layer(bias=False)
    assert layer.base.bias is None
    assert not [name for name, _ in layer.named_parameters() if "bias" in name]


def test_published_failure_up_projections_grow_apart_under_training() -> None:
    layer = build_layer()
    train_steps(layer, num_steps=20, learning_rate=1e-2)
    first_OR, second_OR = layer.up_ONR.detach().unbind(1)
    assert (first_OR - second_OR).abs().max() > 0.1 * first_OR.abs().max()


def test_published_failure_equal_mixture_logits_keep_up_projections_identical() -> None:
    layer = build_layer()
    with torch.no_grad():
        layer.mix_TN.fill_(1.0)
    train_steps(layer, num_steps=20, learning_rate=1e-2)
    first_OR, second_OR = layer.up_ONR.detach().unbind(1)
    assert first_OR.any() and torch.equal(first_OR, second_OR)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_published_failure_transform_learns_on_a_bfloat16_base(transform: str) -> None:
    layer = build_bfloat16_layer(transform=transform)
    start = layer.transform.detach().clone()
    train_steps(layer, num_steps=5, learning_rate=3e-4, dtype=torch.bfloat16)
    moved = (layer.transform.detach() - start)[:3].abs()
    assert moved.max() > 3e-4
    assert {parameter.dtype for parameter in trained(layer).values()} == {torch.float32}


def test_published_failure_bfloat16_transform_never_leaves_one() -> None:
    one = torch.ones((), dtype=torch.bfloat16)
    assert one + 3e-4 == one


@pytest.mark.parametrize("temperature", (0.0, -1.0))
def test_published_failure_zero_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"adapter\.mixture_temperature must be a finite number above 0"):
        MTLLoRAConfig(mixture_temperature=temperature)


def test_published_failure_huge_mixture_logits_do_not_overflow() -> None:
    layer = build_trained_layer(dtype=torch.float32, mixture_temperature=0.05)
    with torch.no_grad():
        layer.mix_TN.copy_(torch.tensor([1e30, -1e30]).expand(T, N))
    mixture_weights_TN = layer.mixture_weights_TN()
    assert torch.equal(mixture_weights_TN, torch.tensor([1.0, 0.0]).expand(T, N))
    layer(random_input(torch.float32)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained(layer).values())


@pytest.mark.parametrize("task", [TASK_B, TASK_B[:, None].expand(B, S)], ids=["rows", "tokens"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"transform": "diagonal"}, {"num_up_projections": 1, "rank": 2}],
    ids=["full", "diagonal", "more tasks than K"],
)
def test_joint_preparation_equals_preparation_per_layer(changes: dict[str, Any], task: torch.Tensor) -> None:
    layers = [
        build_trained_layer(**changes, **other)
        for other in ({}, {"mixture_temperature": 2.0}, {}, {"num_tasks": 3})
    ]
    x, alone = random_input(), []
    for layer in layers:
        layer.routing = layers[0].routing
    with torch.no_grad():
        layers[2].transform.neg_()  # or the two of one shape would be the same
        with layers[0].routing.task_context(task):
            alone = [layer(x) for layer in layers]
        with layers[0].routing.task_context(task.flip(0)):
            torch.testing.assert_close(layers[0](x.flip(0)), alone[0].flip(0), rtol=1e-12, atol=1e-12)
            expected_meanwhile = layers[0](x)
        with layers[0].routing.task_context(task) as in_flight:
            in_flight.prepare(layers)
            assert all(layer.prepared is not None for layer in layers)
            with layers[0].routing.task_context(task.flip(0)):  # a nested pass prepares its own
                meanwhile = layers[0](x)
            together = [layer(x) for layer in layers]
    torch.testing.assert_close(meanwhile, expected_meanwhile, rtol=1e-12, atol=1e-12)
    for one, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(alone[0], alone[2]) and all(layer.prepared is None for layer in layers)
