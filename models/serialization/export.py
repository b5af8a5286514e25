"""Export one task of a model as a PEFT LoRA adapter or as merged weights.

A decoder becomes the sequence classification model of its architecture, whose `score` is the task's head. No
such class of an encoder pools as this project does, so an encoder becomes its bare trunk, with the head in a
file of its own. The README.md of each export says how to load it.

Shape legend: B rows, S tokens, D width, K rank, O width out, C labels of the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.dora import DoRALinear
from models.adapters.injection import adapted_layers
from models.inference.merging import check_task_index, merge_task, task_head
from models.relevance import RelevanceModel
from models.serialization.bundle import encode_json

HEAD_FILE = "head.safetensors"
# code that loads an export, with fields in braces
TEMPLATES = Path(__file__).with_name("templates")

BIAS_WARNING = (
    "**The head has a bias, and transformers' class has none: without the line that sets "
    "`score.bias` every probability is wrong.**\n\n"
)


@dataclass(frozen=True)
class ExportTask:
    """One task of a model, with the facts that its users need."""

    model: RelevanceModel
    index: int
    label_names: Sequence[str]  # worst first
    base_source: str  # argument of from_pretrained for the base model
    base_revision: str | None  # commit of a hub id
    pad_id: int  # padding token, never a row's last token; decoders pool the last other token


def export_peft(task: ExportTask, folder: Path) -> None:
    """Write a folder for `peft.PeftModel.from_pretrained`, with a README.md.

    Pairs of lower rank are padded with zeros, since not every server supports a rank per layer. The scale is
    part of lora_B.

    Raises:
        NotMergeableError: The adapter method is no LoRA for a single task.
        ValueError: There is no such task.
    """
    model, task_index = task.model, task.index
    check_task_index(model, task_index)
    layers = adapted_layers(model.trunk)
    pairs = {name: peft_pair(layer, task_index) for name, layer in layers.items()}
    rank = max(down_KD.shape[0] for down_KD, _ in pairs.values())
    prefix = "base_model.model." + trunk_prefix(model)
    tensors: dict[str, torch.Tensor] = {}
    for name, (down_KD, up_OK) in pairs.items():
        missing = rank - down_KD.shape[0]
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.nn.functional.pad(down_KD, (0, 0, 0, missing))
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.nn.functional.pad(up_OK, (0, missing))
    magnitudes = {name: layer.magnitude_O for name, layer in layers.items() if isinstance(layer, DoRALinear)}
    tensors |= {
        f"{prefix}{name}.lora_magnitude_vector": magnitude_O for name, magnitude_O in magnitudes.items()
    }
    head = task_head(model, task_index).state_dict()
    if model.pooling == "last":
        tensors |= {f"base_model.model.score.{name}": tensor for name, tensor in head.items()}
    else:
        write_tensors(folder / HEAD_FILE, head)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_bytes(encode_json(peft_config(task, rank, bool(magnitudes))))
    (folder / "README.md").write_text(readme(task, "peft"), encoding="utf-8")


def export_merged(task: ExportTask, folder: Path) -> None:
    """Write a folder for transformers' `from_pretrained` with the adapters merged, and a README.md.

    Raises:
        NotMergeableError: The adapter method cannot be merged.
        ValueError: There is no such task, or a merged weight is not finite.
    """
    model = task.model
    merged = merge_task(model, task.index)
    prefix, head = trunk_prefix(model), merged.head.state_dict()
    tensors = {prefix + name: tensor for name, tensor in merged.trunk.state_dict().items()}
    if model.pooling == "last":
        tensors |= {f"score.{name}": tensor for name, tensor in head.items()}
    else:
        write_tensors(folder / HEAD_FILE, head)
    write_tensors(folder / "model.safetensors", tensors)
    trunk: Any = model.trunk
    config = type(trunk.config).from_dict(trunk.config.to_dict())
    config.architectures = [
        (sequence_class(model) if model.pooling == "last" else type(model.trunk)).__name__
    ]
    config.id2label = dict(enumerate(task.label_names))
    config.label2id = {name: index for index, name in enumerate(task.label_names)}
    config.pad_token_id = task.pad_id
    config.save_pretrained(folder)
    (folder / "README.md").write_text(readme(task, "merged"), encoding="utf-8")


def peft_pair(layer: AdaptedLinear, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PEFT's lora_A (K, D) and lora_B (O, K) of a layer, for a scaling of 1.

    DoRA's magnitudes are exported separately.
    """
    if isinstance(layer, DoRALinear):
        return layer.down_RD, layer.up_OR * layer.scale
    return layer.fold(task_index)


def peft_config(task: ExportTask, rank: int, use_dora: bool) -> dict[str, Any]:
    """Return the fields of peft.LoraConfig that PEFT needs to load the tensors."""
    is_decoder = task.model.pooling == "last"
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_decoder else "FEATURE_EXTRACTION",
        "base_model_name_or_path": task.base_source,
        "revision": task.base_revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": use_dora,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": peft_targets(task.model),
        "modules_to_save": ["score"] if is_decoder else None,
    }


def peft_targets(model: RelevanceModel) -> list[str]:
    """Return the adapted linears by name suffix if that selects exactly them, else by full name."""
    adapted = set(adapted_layers(model.trunk))
    linears = {
        name.removesuffix(".base")
        for name, module in model.trunk.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    suffixes = sorted({name.rpartition(".")[2] for name in adapted})
    if {name for name in linears if name.rpartition(".")[2] in suffixes} == adapted:
        return suffixes
    return sorted(trunk_prefix(model) + name for name in adapted)


def trunk_prefix(model: RelevanceModel) -> str:
    """Return the prefix of the trunk's names in the exported model class."""
    return f"{sequence_class(model).base_model_prefix}." if model.pooling == "last" else ""


def sequence_class(model: RelevanceModel) -> Any:
    """Return transformers' sequence classification class of the trunk's architecture.

    Raises:
        ValueError: There is none.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    trunk: Any = model.trunk
    if type(trunk.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classification for {trunk.config.model_type}; this backbone "
            "cannot be exported"
        )
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(trunk.config)]


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write safetensors that transformers and peft can read."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def readme(task: ExportTask, export_format: str) -> str:
    """Return the README.md of an export: how to load it."""
    pooling, num_labels = task.model.pooling, len(task.label_names)
    template = f"{'decoder' if pooling == 'last' else 'encoder'}_{export_format}.txt"
    code = (TEMPLATES / template).read_text()
    code = code.format(
        base=task.base_source, revision=task.base_revision, num_labels=num_labels, pad_id=task.pad_id
    )
    content = "A LoRA adapter and a head" if export_format == "peft" else "A model"
    return (
        f"# {content} for one task of query-ad relevance\n\nBase model: `{task.base_source}`. Labels, "
        f"worst first: {', '.join(task.label_names)}.\n"
        f"Pad on the right with token {task.pad_id}. relevance.json, where there is one, holds the "
        "text template, its limits and the calibration,\n"
        "which was fitted to the model with unmerged "
        f"adapters.\n\n{BIAS_WARNING if pooling == 'last' else ''}"
        f'```python\nfolder = "."\n{code}```\n'
    )
