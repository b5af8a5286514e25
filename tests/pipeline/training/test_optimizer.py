"""Tests of the optimizer: weight decay, learning rates, the schedule, frozen entries."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from pipeline.config.training import OptimizerConfig
from pipeline.training.optimizer import build_optimizer, freeze_zero_gradient_entries, learning_rate_scale

CONFIG = OptimizerConfig(
    learning_rate=1e-3, head_learning_rate=5e-3, mixture_learning_rate=2e-3, weight_decay=0.1
)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> RelevanceModel:
    backbone = BackboneConfig(source=str(tiny_llama), dtype="float32")
    return build_model(ModelConfig(backbone, MTLLoRAConfig(rank=2), (2, 4)), load_backbone(backbone), seed=0)


def settings_by_name(model: RelevanceModel) -> dict[str, tuple[float, float]]:
    """Return (peak rate, decay) of each trained tensor."""
    names = {id(parameter): name for name, parameter in model.trainable_state().items()}
    groups = build_optimizer(model, CONFIG).param_groups
    pairs = [
        (names[id(p)], (group["peak_rate"], group["weight_decay"]))
        for group in groups
        for p in group["params"]
    ]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def test_trained_tensors_are_optimized_once_and_the_backbone_never(model: RelevanceModel) -> None:
    assert settings_by_name(model).keys() == model.trainable_state().keys()
    assert not any(name.endswith("base.weight") for name in settings_by_name(model))


def test_only_projections_decay_and_groups_have_own_rates(model: RelevanceModel) -> None:
    expected = {
        "down_RD": (1e-3, 0.1),
        "up_ONR": (1e-3, 0.1),
        "transform": (1e-3, 0.0),
        "mix_TN": (2e-3, 0.0),
    }
    expected |= {"weight_KD": (5e-3, 0.0), "bias_K": (5e-3, 0.0)}
    found = settings_by_name(model)
    assert {name.rpartition(".")[2] for name in found} == set(expected)
    assert {name: expected[name.rpartition(".")[2]] for name in found} == found


def test_mixture_rate_defaults_to_the_adapter_rate(model: RelevanceModel) -> None:
    groups = build_optimizer(model, OptimizerConfig(learning_rate=1e-3)).param_groups
    assert {group["name"]: group["peak_rate"] for group in groups} == {
        "projections": 1e-3,
        "transforms": 1e-3,
        "mixtures": 1e-3,
        "heads": 5e-4,
    }


@pytest.mark.parametrize("method", (MTLLoRAConfig, PerTaskLoRAConfig, MoELoRAConfig, MTLoRAConfig))
def test_absent_task_does_not_move_by_momentum(tiny_llama: Path, method: Any) -> None:
    backbone = BackboneConfig(source=str(tiny_llama), dtype="float32")
    model = build_model(ModelConfig(backbone, method(rank=4), (2, 2, 2)), load_backbone(backbone), seed=0)
    optimizer = build_optimizer(model, CONFIG)
    ids_BS = torch.arange(2, 26).view(4, 6)

    def step(tasks: list[int]) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        model(ids_BS, torch.ones_like(ids_BS), torch.tensor(tasks)).square().sum().backward()
        optimizer.step()
        return {name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}

    def task_part(name: str, tensor: torch.Tensor, task: int) -> torch.Tensor | None:
        if name.startswith("heads."):
            return tensor[2 * task : 2 * task + 2]
        last = name.rpartition(".")[2]
        letters = "TRR" if last == "transform" else last.rpartition("_")[2]
        return tensor.select(letters.index("T"), task) if "T" in letters else None

    for _ in range(3):
        before = step([0, 1, 2, 0])
    after = step([0, 1, 1, 0])
    absent = [
        (name, task_part(name, before[name], 2), task_part(name, after[name], 2))
        for name in before
        if task_part(name, before[name], 2) is not None
    ]
    assert len(absent) > 4
    for name, was, now in absent:
        assert torch.equal(was, now), name
    for name in before:
        present = task_part(name, after[name], 1)
        assert not torch.equal(after[name], before[name]), name
        assert present is None or not torch.equal(present, task_part(name, before[name], 1)), name
    back = step([2, 1, 1, 2])
    assert not any(torch.equal(now, task_part(name, back[name], 2)) for name, _, now in absent)


@pytest.mark.parametrize("every", (2, 10, 50))
def test_returning_task_takes_no_larger_step_than_adam(every: int) -> None:
    def largest_step(freeze: bool) -> float:
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.0)
        if freeze:
            freeze_zero_gradient_entries(optimizer)
        steps = []
        for number in range(400):
            parameter.grad = torch.tensor([1.0, 1.0 if number % every == 0 else 0.0])
            before = parameter.detach().clone()
            optimizer.step()
            if number % every == 0:
                steps.append(float((parameter.detach() - before)[1].abs()) / 0.01)
        return max(steps)

    assert largest_step(freeze=True) == pytest.approx(largest_step(freeze=False), rel=1e-6)
    assert largest_step(freeze=True) <= 1.0 + 1e-6


def test_freezing_changes_nothing_with_full_gradients() -> None:
    """Compare with torch's AdamW bit for bit."""

    def train(freeze: bool) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
        if freeze:
            freeze_zero_gradient_entries(optimizer)
        for number in range(5):
            optimizer.zero_grad()
            ((parameter - number) ** 3).sum().backward()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(train(True), train(False))


@pytest.mark.parametrize("warmup_share", [0.0, 0.06, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 97, 1_000])
def test_learning_rate_rises_then_falls_and_stays_positive(num_steps: int, warmup_share: float) -> None:
    shares = [learning_rate_scale(step, num_steps, warmup_share) for step in range(num_steps)]
    peak = shares.index(max(shares))
    assert shares[peak] == 1.0
    assert all(before < after for before, after in zip(shares[:peak], shares[1 : peak + 1], strict=True))
    assert all(before >= after for before, after in zip(shares[peak:], shares[peak + 1 :], strict=False))
    assert min(shares) > 0
    assert peak + 1 == max(1, round(num_steps * warmup_share))


def test_learning_rate_is_piecewise_linear() -> None:
    shares = [learning_rate_scale(step, 10, 0.4) for step in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [learning_rate_scale(step, 4, 0.0) for step in range(4)] == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])
