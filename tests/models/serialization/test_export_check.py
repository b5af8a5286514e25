"""An export is refused unless its README's code gives the model's logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.adapters.lora import LoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from models.serialization.export import (
    MERGED_WEIGHTS,
    PEFT_WEIGHTS,
    ExportFormat,
    ExportTask,
    export_merged,
    export_peft,
)
from models.serialization.export_check import (
    ExportRefusedError,
    check_export,
    check_peft_installed,
    sample_export,
)
from tests.support.tiny_trunks import KINDS, tiny_decoder, write_model

FORMATS: tuple[ExportFormat, ...] = ("peft", "merged")
WRITERS = {"peft": export_peft, "merged": export_merged}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [0],
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
}


def stirred_model(folder: Path, targets: Any, dtype: Any = "float32") -> RelevanceModel:
    """Build a model of two tasks with random adapters around a trunk."""
    config = BackboneConfig(source=str(folder), dtype=dtype)
    adapter = LoRAConfig(rank=4, target_modules=targets)
    model = build_model(ModelConfig(config, adapter, (2, 3)), load_backbone(config), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def export(model: RelevanceModel, base: Path, export_format: ExportFormat, folder: Path, batch: Any) -> Any:
    """Write the second task and return the sample that it must reproduce."""
    task = ExportTask(model, 1, ("bad", "fair", "good"), str(base), None, pad_id=0)
    folder.mkdir()
    WRITERS[export_format](task, folder)
    return sample_export(task, export_format, batch[0], batch[1])


@pytest.mark.parametrize("kind", MIXTURES)
def test_adapters_that_peft_moves_to_experts_are_refused(kind: str, batch: Any, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", tiny_decoder(kind, **MIXTURES[kind]))
    dense, attention = stirred_model(base, "all-linear"), stirred_model(base, ("o_proj",))
    sample = export(dense, base, "peft", tmp_path / "dense", batch)
    reason = r"\(model.layers.0.mlp.down_proj\): it takes down_proj, gate_proj, up_proj for names of experts"
    with pytest.raises(ExportRefusedError, match=reason + "; use --format merged"):
        check_export(tmp_path / "dense", "peft", sample)
    cases: list[tuple[RelevanceModel, str, ExportFormat]] = [
        (dense, "all", "merged"),
        (attention, "attention", "peft"),
    ]
    for model, name, export_format in cases:
        sample = export(model, base, export_format, tmp_path / name, batch)
        check_export(tmp_path / name, export_format, sample)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_exports_of_many_trunks_pass(dtype: str, batch: Any, tmp_path: Path) -> None:
    for kind, (build, targets) in KINDS.items():
        base = write_model(tmp_path / kind / "base", build())
        model = stirred_model(base, targets, dtype)
        for export_format in FORMATS:
            folder = tmp_path / kind / export_format
            check_export(folder, export_format, export(model, base, export_format, folder, batch))


@pytest.mark.parametrize("export_format", FORMATS)
def test_changed_lost_or_unreadable_tensors_are_refused(
    export_format: ExportFormat, fresh_model: Any, llama_dir: Path, batch: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    sample = export(fresh_model(stir=7), llama_dir, export_format, folder, batch)
    path = folder / (PEFT_WEIGHTS if export_format == "peft" else MERGED_WEIGHTS)
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.self_attn.q_proj" in name)
    lost = {other: tensor for other, tensor in tensors.items() if other != name}
    for changed in (tensors | {name: tensors[name] + 1}, lost, lost | {f"{name}.other": tensors[name]}):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ExportRefusedError, match="--format merged|relevance predict"):
            check_export(folder, export_format, sample)
    path.write_bytes(b"no tensors")
    with pytest.raises(ExportRefusedError, match="the export does not load"):
        check_export(folder, export_format, sample)


def test_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_peft_installed()
    monkeypatch.setattr("models.serialization.export_check.find_spec", lambda name: None)
    with pytest.raises(ExportRefusedError, match="package peft.*pip install peft"):
        check_peft_installed()
