"""One task of a model in other tools' formats: a PEFT LoRA adapter, or full weights without any adapter.

Decoders are written as transformers' sequence classification of their family, whose `score` is the task's
head; encoders, for which no such class pools as ours, as the bare trunk with the head in a file of its own.
Each folder's README.md says how to load it.

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
from models.inference.merging import check_task, merge_task, task_head
from models.relevance import RelevanceModel
from models.serialization.bundle import encode_json

HEAD_FILE = "head.safetensors"
# the code that loads an export, with its places in braces
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class ExportTask:
    """One task of a model, and what whoever loads it must know."""

    model: RelevanceModel
    index: int
    label_names: Sequence[str]  # worst first
    base_source: str  # what from_pretrained finds the base model by
    base_revision: str | None  # commit of a hub id
    pad_id: int  # fills the padding and ends no row: the last other token is what decoders pool


def export_peft(task: ExportTask, folder: Path) -> None:
    """Write adapter_model.safetensors, adapter_config.json and README.md into `folder`, for
    `peft.PeftModel.from_pretrained`.

    Pairs of lower rank are filled up with zeros, since not every server reads ranks layer by layer; the
    factor is inside lora_B. NotMergeableError: the method is no LoRA for a task. ValueError: no such task.
    """
    model, task_index = task.model, task.index
    check_task(model, task_index)
    layers = adapted_layers(model.trunk)
    pairs = {name: peft_pair(layer, task_index) for name, layer in layers.items()}
    rank = max(down_KD.shape[0] for down_KD, _ in pairs.values())
    prefix = "base_model.model." + trunk_prefix(model)
    tensors: dict[str, torch.Tensor] = {}
    for name, (down_KD, up_OK) in pairs.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.nn.functional.pad(
            down_KD, (0, 0, 0, rank - down_KD.shape[0])
        )
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.nn.functional.pad(up_OK, (0, rank - up_OK.shape[1]))
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
    """Write config.json, model.safetensors and README.md into `folder`: the task's model with its adapters in
    the weights.

    NotMergeableError, ValueError: as `merge_task` says.
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
    """(K, D) and (O, K): the layer as PEFT's lora_A and lora_B of scaling 1. DoRA's pair turns directions;
    its magnitudes go beside it.
    """
    if isinstance(layer, DoRALinear):
        return layer.down_RD, layer.up_OR * layer.scale
    return layer.fold(task_index)


def peft_config(task: ExportTask, rank: int, use_dora: bool) -> dict[str, Any]:
    """The fields of peft.LoraConfig that say how to load the tensors."""
    decoder = task.model.pooling == "last"
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if decoder else "FEATURE_EXTRACTION",
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
        "modules_to_save": ["score"] if decoder else None,
    }


def peft_targets(model: RelevanceModel) -> list[str]:
    """The adapted linears by the end of their names where that says exactly them, by full names otherwise."""
    adapted = set(adapted_layers(model.trunk))
    linears = {
        name.removesuffix(".base")
        for name, module in model.trunk.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    if {name for name in linears if name.rpartition(".")[2] in ends} == adapted:
        return ends
    return sorted(trunk_prefix(model) + name for name in adapted)


def trunk_prefix(model: RelevanceModel) -> str:
    """Where the trunk lies in the class that the export is for."""
    return f"{sequence_class(model).base_model_prefix}." if model.pooling == "last" else ""


def sequence_class(model: RelevanceModel) -> Any:
    """transformers' sequence classification of the trunk's family. ValueError: there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    trunk: Any = model.trunk
    if type(trunk.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classification for {trunk.config.model_type}; this backbone "
            "cannot be exported"
        )
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(trunk.config)]


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """safetensors that transformers and peft read."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


BIAS_WARNING = (
    "**The head has a bias, and transformers' class has none: without the line that sets "
    "`score.bias` every probability is wrong.**\n\n"
)


def readme(task: ExportTask, export_format: str) -> str:
    """How to load the folder, for people."""
    pooling, num_labels = task.model.pooling, len(task.label_names)
    template = f"{'decoder' if pooling == 'last' else 'encoder'}_{export_format}.txt"
    code = (
        (TEMPLATES / template)
        .read_text()
        .format(base=task.base_source, revision=task.base_revision, num_labels=num_labels, pad_id=task.pad_id)
    )
    what = "A LoRA adapter and a head" if export_format == "peft" else "A model"
    return (
        f"# {what} for one task of query-ad relevance\n\nBase model: `{task.base_source}`. Labels, "
        f"worst first: {', '.join(task.label_names)}.\n"
        f"Pad on the right with token {task.pad_id}. relevance.json, where there is one, holds the "
        "text template, its limits and the calibration,\n"
        "which was fitted to the model with its adapters "
        f"apart.\n\n{BIAS_WARNING if pooling == 'last' else ''}"
        f'```python\nfolder = "."\n{code}```\n'
    )
