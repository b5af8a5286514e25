"""Exports reproduce the trained model: each test runs the code in the export's README."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.adapters.adapted_linear import NotMergeableError
from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from models.serialization.export import (
    ExportTask,
    export_merged,
    export_peft,
    peft_targets,
    write_tensors,
)
from tests.support.tiny_trunks import tiny_decoder, tiny_gemma3, write_model

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"transform": "diagonal", "use_rslora": True},
    {"task_layers": 1},
    {"layers_to_transform": (1,)},
    {"target_modules": "all-linear"},
    *[
        {"method": method}
        for method in (
            LoRAConfig,
            PerTaskLoRAConfig,
            MultiLoRAConfig,
            MoELoRAConfig,
            DoRAConfig,
            MTLoRAConfig,
        )
    ],
]


def task_of(
    model: RelevanceModel, index: int, base: str = "some/base", revision: str | None = None
) -> ExportTask:
    names = [f"level {label}" for label in range(model.heads.num_labels_T[index])]
    return ExportTask(model, index, names, base, revision, pad_id=0)


def run_readme(folder: Path, batch: Batch) -> torch.Tensor:
    """Run the code in the README and return its logits."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"input_ids": batch[0], "attention_mask": batch[1]}
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), names)  # noqa: S102
    return names["logits"].detach()


def task_logits(model: RelevanceModel, batch: Batch, task: int) -> torch.Tensor:
    return model(batch[0], batch[1], torch.full((6,), task))[:, : model.heads.num_labels_T[task]].detach()


@pytest.mark.parametrize("kind", ("llama", "bert"))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_peft_reproduces_each_task(
    fresh_model: FreshModel,
    trunk_dirs: dict[str, Path],
    batch: Batch,
    tmp_path: Path,
    kind: str,
    settings: dict[str, Any],
) -> None:
    model = fresh_model(kind, stir=7, **settings)
    for task in range(3):
        folder = tmp_path / str(task)
        folder.mkdir()
        export_peft(task_of(model, task, str(trunk_dirs[kind])), folder)
        torch.testing.assert_close(
            run_readme(folder, batch), task_logits(model, batch, task), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("kind", ("llama", "bert"))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_transformers_reproduces_each_merged_task(
    fresh_model: FreshModel, batch: Batch, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    model = fresh_model(kind, stir=7, **settings)
    for task in range(3):
        folder = tmp_path / str(task)
        folder.mkdir()
        export_merged(task_of(model, task), folder)
        torch.testing.assert_close(
            run_readme(folder, batch), task_logits(model, batch, task), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize(
    ("kind", "has_score"),
    [
        ("gemma3", True),  # pad_token_id is of the text's config
        ("gpt_neox", True),  # the trunk has a name of its own
        ("modernbert-decoder", False),  # layers between trunk and classifier
        ("granite", False),  # no sequence classification
    ],
)
def test_readme_of_each_kind_of_decoder_runs(
    kind: str, has_score: bool, batch: Batch, tmp_path: Path
) -> None:
    settings = (
        {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0} if kind == "modernbert-decoder" else {}
    )
    trunk = tiny_gemma3() if kind == "gemma3" else tiny_decoder(kind, **settings)
    base = write_model(tmp_path / "base", trunk)
    config = BackboneConfig(source=str(base), dtype="float32")
    adapter = LoRAConfig(rank=4, target_modules="all-linear")
    model = build_model(ModelConfig(config, adapter, (2, 3, 5)), load_backbone(config), seed=0)
    layers: list[Any] = model.adapted
    for layer in layers:
        torch.nn.init.normal_(layer.up_OR, std=0.3, generator=torch.Generator().manual_seed(7))
    for name, write in (("peft", export_peft), ("merged", export_merged)):
        folder = tmp_path / name
        folder.mkdir()
        write(task_of(model, 1, str(base)), folder)
        torch.testing.assert_close(
            run_readme(folder, batch), task_logits(model, batch, 1), rtol=2e-5, atol=2e-5
        )
        assert (folder / "head.safetensors").is_file() != has_score


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "tied.safetensors", {"a": tied, "b": tied, "c": tied[1]})
    read = load_file(tmp_path / "tied.safetensors")
    assert read["a"].equal(tied) and read["b"].equal(tied) and read["c"].equal(tied[1])


def test_suffix_that_another_module_has_is_not_a_target(fresh_model: FreshModel) -> None:
    model = fresh_model(stir=7)
    assert peft_targets(task_of(model, 1)) == ["q_proj", "v_proj"]
    trunk: Any = model.trunk
    trunk.layers[0].add_module("v_proj", torch.nn.LayerNorm(4))
    assert peft_targets(task_of(model, 1))[0] == "model.layers.0.self_attn.q_proj"


def test_exported_adapter_has_the_names_of_peft(fresh_model: FreshModel, tmp_path: Path) -> None:
    export_peft(task_of(fresh_model(stir=7), 1, revision="abc123"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["revision"] == "abc123" and "revision = 'abc123'" in (tmp_path / "README.md").read_text()
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 32)
    assert shapes["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"] == (16, 4)
    assert shapes["base_model.model.score.weight"] == (3, 32) and shapes["base_model.model.score.bias"] == (
        3,
    )
    assert len(shapes) == 2 * 2 * 2 + 2


def test_merged_config_names_labels_and_padding(fresh_model: FreshModel, tmp_path: Path) -> None:
    export_merged(task_of(fresh_model(stir=7), 1), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["id2label"] == {"0": "level 0", "1": "level 1", "2": "level 2"} and config["pad_token_id"] == 0
    )
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (
        "without the line that sets `score.bias` every probability is wrong"
        in (tmp_path / "README.md").read_text()
    )


def test_exported_rank_is_that_of_one_up_projection(fresh_model: FreshModel, tmp_path: Path) -> None:
    export_peft(task_of(fresh_model(stir=7, num_up_projections=3), 0), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


def test_token_routed_method_exports_nothing(fresh_model: FreshModel, tmp_path: Path) -> None:
    model = fresh_model(stir=7, method=HydraLoRAConfig)
    for write in (export_peft, export_merged):
        with pytest.raises(NotMergeableError, match="hydra_lora"):
            write(task_of(model, 0), tmp_path)
    assert not list(tmp_path.iterdir())
