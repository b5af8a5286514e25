"""Backbones of bitsandbytes: quantised while they are loaded, or stored so; and their refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils
from safetensors.torch import load_file, save_file

from models.adapters.lora import LoRAConfig
from models.backbone import load_backbone, resolve_folder
from models.config import BackboneConfig, ModelConfig
from models.folder_checks import BackboneUnavailableError
from models.quantization import QuantizedLinear
from models.relevance import build_model
from tests.support.backbone_folders import copy_of
from tests.support.stored_linears import KINDS
from tests.support.tiny_trunks import write_tokenizer

STORED: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, scales quantised": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "nf4, in bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def backbone_config(folder: Path, quantization: Any = None, dtype: Any = "float32") -> BackboneConfig:
    return BackboneConfig(source=str(folder), dtype=dtype, quantization=quantization)


def set_quantization(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_setting_without_the_package_is_refused(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        BackboneUnavailableError, match=f"bitsandbytes is missing.*backbone.quantization is {kind}; run pip"
    ):
        resolve_folder(backbone_config(llama_dir, kind))


@pytest.mark.parametrize("named", (True, False))
def test_stored_checkpoint_without_the_package_is_refused(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    method = {"quant_method": "bitsandbytes"} if named else {}
    folder = set_quantization(copy_of(llama_dir, tmp_path / "stored"), load_in_4bit=True, **method)
    with pytest.raises(BackboneUnavailableError, match="bitsandbytes is missing.*stored is quantised by it"):
        resolve_folder(backbone_config(folder))


def test_setting_for_a_stored_checkpoint_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    folder = set_quantization(copy_of(llama_dir, tmp_path / "stored"), quant_method="bitsandbytes")
    with pytest.raises(BackboneUnavailableError, match="quantised already, and backbone.quantization is nf4"):
        resolve_folder(backbone_config(folder, "nf4"))


def test_stored_checkpoint_with_whole_weights_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path / "stored")
    set_quantization(folder, quant_method="bitsandbytes", load_in_8bit=True, llm_int8_has_fp16_weight=True)
    with pytest.raises(BackboneUnavailableError, match="quantised by bitsandbytes, which is not supported"):
        resolve_folder(backbone_config(folder))


def test_quantised_vocabulary_head_is_refused(untied_llama_dir: Path, tmp_path: Path) -> None:
    folder = set_quantization(copy_of(untied_llama_dir, tmp_path / "stored"), quant_method="bitsandbytes")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"stores lm_head\.weight as I8"):
        resolve_folder(backbone_config(folder))


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("kind", KINDS)
def test_setting_quantises_every_linear_and_only_those(llama_dir: Path, kind: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    plain = load_backbone(backbone_config(llama_dir, dtype=dtype))
    backbone = load_backbone(backbone_config(llama_dir, kind, dtype))
    assert backbone.digest == plain.digest and backbone.dtype == plain.dtype
    quantised = dict(backbone.trunk.named_modules())
    for name, module in plain.trunk.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert isinstance(quantised[name], QuantizedLinear), name
            assert quantised[name].dtype == backbone.dtype
            error = (quantised[name].weight - module.weight).float().norm() / module.weight.float().norm()
            assert 0 < error < (0.15 if kind == "nf4" else 0.02), name
    assert {parameter.dtype for parameter in backbone.trunk.parameters()} == {backbone.dtype}
    assert "quantization_config" not in backbone.trunk.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_base_is_the_same_at_every_load(llama_dir: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    first, second = (load_backbone(backbone_config(llama_dir, kind)).trunk.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("stored", STORED)
def test_stored_checkpoint_is_dequantised_as_the_library_does(
    llama_dir: Path, tmp_path: Path, stored: str
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    folder = tmp_path / "stored"
    source: Any = AutoModelForCausalLM.from_pretrained(
        llama_dir, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**STORED[stored])
    )
    source.save_pretrained(folder)
    write_tokenizer(folder)
    backbone = load_backbone(backbone_config(folder))
    linears = {
        name: module for name, module in backbone.trunk.named_modules() if isinstance(module, QuantizedLinear)
    }
    assert len(linears) == 14
    for name, linear in linears.items():
        original = source.model.get_submodule(name)
        expected = dequantize_bnb_weight(original.weight, getattr(original, "state", None))
        torch.testing.assert_close(linear.weight, expected.float(), msg=name)
    model = build_model(ModelConfig(backbone_config(folder), LoRAConfig(), (2, 3)), backbone, seed=0)
    ids = torch.tensor([[2, 3, 4]])
    model(ids, torch.ones_like(ids), torch.tensor([1])).exp().sum().backward()
    gradients = [parameter.grad for parameter in model.trainable_state().values()]
    assert all(gradient is not None for gradient in gradients)
