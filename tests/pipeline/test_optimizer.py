"""What decays, what learns at which rate, and how the rate moves over a run."""

from pathlib import Path

import pytest

from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig, MTLLoRAConfig
from models.relevance import RelevanceModel, build_model
from pipeline.config import OptimizerConfig
from pipeline.optimizer import build_optimizer, rate_share

CONFIG = OptimizerConfig(learning_rate=1e-3, head_learning_rate=5e-3, weight_decay=0.1)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> RelevanceModel:
    backbone = BackboneConfig(source=str(tiny_llama), dtype="float32")
    return build_model(ModelConfig(backbone, MTLLoRAConfig(rank=2), (2, 4)), load_backbone(backbone), seed=0)


def settings_by_name(model: RelevanceModel) -> dict[str, tuple[float, float]]:
    """(peak rate, decay) of each trained tensor."""
    names = {id(parameter): name for name, parameter in model.trainable_state().items()}
    groups = build_optimizer(model, CONFIG).param_groups
    pairs = [(names[id(p)], (group["peak_rate"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def test_every_trained_tensor_is_optimised_once_and_the_backbone_never(model: RelevanceModel) -> None:
    assert settings_by_name(model).keys() == model.trainable_state().keys()
    assert not any(name.endswith("base.weight") for name in settings_by_name(model))


def test_only_projections_decay_and_only_heads_have_their_own_rate(model: RelevanceModel) -> None:
    expected = {"down_RD": (1e-3, 0.1), "up_ONR": (1e-3, 0.1), "transform": (1e-3, 0.0), "mix_TN": (1e-3, 0.0)}
    expected |= {"weight_KD": (5e-3, 0.0), "bias_K": (5e-3, 0.0)}
    found = settings_by_name(model)
    assert {name.rpartition(".")[2] for name in found} == set(expected)
    assert {name: expected[name.rpartition(".")[2]] for name in found} == found


@pytest.mark.parametrize("warmup_share", [0.0, 0.06, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 97, 1_000])
def test_the_rate_rises_to_its_peak_and_falls_and_no_step_is_without_one(num_steps: int, warmup_share: float) -> None:
    shares = [rate_share(step, num_steps, warmup_share) for step in range(num_steps)]
    peak = shares.index(max(shares))
    assert shares[peak] == 1.0
    assert all(before < after for before, after in zip(shares[:peak], shares[1 : peak + 1], strict=True))
    assert all(before >= after for before, after in zip(shares[peak:], shares[peak + 1 :], strict=False))
    assert min(shares) > 0
    assert peak + 1 == max(1, round(num_steps * warmup_share))


def test_the_rate_rises_and_falls_in_straight_lines() -> None:
    shares = [rate_share(step, 10, 0.4) for step in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [rate_share(step, 4, 0.0) for step in range(4)] == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])
