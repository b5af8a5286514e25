"""Tiny models for the tests of models/."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import Backbone, load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from tests.support.tiny_trunks import WORDS, tiny_bert, tiny_llama, write_model

torch.set_num_threads(1)  # test processes share the machine's cores


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trunks") / "llama", tiny_llama(tied=True))


@pytest.fixture(scope="session")
def untied_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trunks") / "llama", tiny_llama(tied=False))


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trunks") / "bert", tiny_bert())


TARGETS = {"llama": ("q_proj", "v_proj"), "bert": ("query", "value")}


@pytest.fixture(scope="session")
def trunk_dirs(llama_dir: Path, bert_dir: Path) -> dict[str, Path]:
    return {"llama": llama_dir, "bert": bert_dir}


def backbone_at(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(source=str(folder), dtype="float32"))


@pytest.fixture(scope="session")
def fresh_backbone(trunk_dirs: dict[str, Path]) -> Callable[..., Backbone]:
    """Return a function that loads a new backbone, "llama" or "bert", which the test may change."""
    return lambda kind="llama": backbone_at(trunk_dirs[kind])


@pytest.fixture(scope="session")
def fresh_model(
    fresh_backbone: Callable[..., Backbone], trunk_dirs: dict[str, Path]
) -> Callable[..., RelevanceModel]:
    """Return a function that builds a model with three tasks of 2, 3 and 5 labels.

    Its arguments are the backbone's kind, the seed, `stir` (a seed of random changes to every trainable
    tensor), the config class of the adapter method, and settings of that class.
    """

    def build(
        kind: str = "llama",
        seed: int = 0,
        stir: int | None = None,
        method: Any = MTLLoRAConfig,
        **adapter: Any,
    ) -> RelevanceModel:
        own = {"num_up_projections": 3} if method is MTLLoRAConfig else {}
        config = ModelConfig(
            backbone=BackboneConfig(source=str(trunk_dirs[kind]), dtype="float32"),
            adapter=method(**{"rank": 4, "target_modules": TARGETS[kind], **own, **adapter}),
            num_labels_T=(2, 3, 5),
        )
        model = build_model(config, fresh_backbone(kind), seed)
        if stir is not None:
            generator = torch.Generator().manual_seed(stir)
            with torch.no_grad():
                for parameter in model.trainable_state().values():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (B, S), mask (B, S) and task ids (B,) of six rows of two to seven tokens, with all tasks."""
    generator = torch.Generator().manual_seed(3)
    length_B = torch.tensor([7, 3, 5, 2, 7, 4])
    mask_BS = (torch.arange(7)[None, :] < length_B[:, None]).long()
    ids_BS = torch.randint(2, len(WORDS), (6, 7), generator=generator) * mask_BS
    return ids_BS, mask_BS, torch.tensor([0, 2, 1, 0, 2, 1])
