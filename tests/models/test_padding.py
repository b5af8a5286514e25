"""Rows do not depend on their padding; a model whose rows do is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import ModelConfig
from models.folder_checks import BackboneUnavailableError
from models.padding import check_padding, padding_effect
from models.relevance import RelevanceModel, build_model
from tests.support.backbone_folders import config_of
from tests.support.tiny_trunks import BIDIRECTIONAL_KINDS, KINDS, write_model

SHORT, LONG = [5, 6, 7], [9, 10, 11, 12, 13, 14, 2, 3, 4, 5, 6, 7, 8]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., RelevanceModel]:
    """Return a function that builds a model of two tasks with random adapters on a trunk of a kind."""

    def build(kind: str, dtype: str = "float32") -> RelevanceModel:
        maker, targets = KINDS[kind]
        source = config_of(write_model(tmp_path / "trunk", maker()), dtype=dtype)
        adapter = MTLLoRAConfig(target_modules=targets)
        model = build_model(ModelConfig(source, adapter, (2, 3)), load_backbone(source), seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.trainable_state().values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_a_row(build: Callable[..., Any], kind: str, dtype: str) -> None:
    model = build(kind, dtype)
    assert model.pooling == ("mean" if kind in BIDIRECTIONAL_KINDS else "last")
    before = torch.get_rng_state()
    check_padding(model, SHORT, LONG, pad_id=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", BIDIRECTIONAL_KINDS)
def test_model_that_attends_to_padding_is_refused(build: Callable[..., Any], kind: str, dtype: str) -> None:
    model = build(kind, dtype)
    model.pooling = "last"  # so the mask is not given to the trunk
    with pytest.raises(
        BackboneUnavailableError, match=r"changes a row by \d\.\d+ .*, at most 0\.\d+ is rounding"
    ):
        check_padding(model, SHORT, LONG, pad_id=0)


def test_model_that_returns_nan_is_refused(build: Callable[..., Any]) -> None:
    model = build("llama")
    model.trunk.get_input_embeddings().weight.data[0] = float("nan")
    assert padding_effect(model, SHORT, LONG, pad_id=1) < 1e-3
    with pytest.raises(BackboneUnavailableError, match="changes a row by nan"):
        check_padding(model, [0, *SHORT], LONG, pad_id=1)
