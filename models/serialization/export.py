"""Export one task of a model as a PEFT LoRA adapter or as merged weights.

A decoder becomes the sequence classification model of its architecture, whose `score` is the task's head. An
encoder, or a decoder whose class has layers besides trunk and `score`, becomes a trunk with the head in a
file of its own. The README.md of each export says how to load it; export_check.py runs that code.

Shape legend: B rows, S tokens, D width, K rank, O width out, C labels of the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from models.adapters.adapted_linear import AdaptedLinear
from models.adapters.conv1d import LinearFromConv1D
from models.adapters.dora import DoRALinear
from models.adapters.injection import adapted_layers
from models.inference.merging import check_task_index, merge_task, task_head
from models.quantization import is_quantized
from models.relevance import RelevanceModel
from models.serialization.bundle import encode_json
from models.trunks import trunk_options

ExportFormat = Literal["peft", "merged"]

HEAD_FILE = "head.safetensors"
MERGED_WEIGHTS = "model.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
# code that loads an export; the README.md sets its variables
TEMPLATES = Path(__file__).with_name("templates")

BIAS_WARNING = (
    "**The head has a bias, and transformers' class has none: without the line that sets "
    "`score.bias` every probability is wrong.**\n\n"
)


@dataclass(frozen=True)
class ExportTask:
    """One task of a model, with what an export says about it."""

    model: RelevanceModel
    index: int
    label_names: Sequence[str]  # worst first
    base_source: str  # argument of from_pretrained for the base model
    base_revision: str | None  # commit of a hub id
    pad_id: int  # padding token; no row ends with it, because decoders pool the last other token

    @cached_property
    def sequence_class(self) -> Any | None:
        """Sequence classification class of transformers for this trunk, None if none fits."""
        return find_sequence_class(self.model)

    @property
    def trunk_prefix(self) -> str:
        """Prefix of the trunk's names in the exported model class."""
        return "" if self.sequence_class is None else f"{self.sequence_class.base_model_prefix}."


def export_peft(task: ExportTask, folder: Path) -> None:
    """Write a folder for `peft.PeftModel.from_pretrained`, with a README.md.

    Pairs of lower rank are padded with zeros, since not every server supports a rank per layer. The scale is
    part of lora_B.

    Raises:
        NotMergeableError: The adapter method has no LoRA pair for a single task.
        ValueError: There is no such task, or the base is quantised.
    """
    model, task_index = task.model, task.index
    check_task_index(model, task_index)
    if is_quantized(model.trunk):
        raise ValueError(
            "the adapters were trained over quantised weights, and PEFT would apply them to unquantised "
            "ones; use --format merged, which has the dequantised weights"
        )
    layers = adapted_layers(model.trunk)
    pairs = {name: peft_pair(layer, task_index) for name, layer in layers.items()}
    rank = max(down_KD.shape[0] for down_KD, _ in pairs.values())
    prefix = "base_model.model." + task.trunk_prefix
    tensors: dict[str, torch.Tensor] = {}
    for name, (down_KD, up_OK) in pairs.items():
        padding = rank - down_KD.shape[0]
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.nn.functional.pad(down_KD, (0, 0, 0, padding))
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.nn.functional.pad(up_OK, (0, padding))
    magnitudes = {name: layer.magnitude_O for name, layer in layers.items() if isinstance(layer, DoRALinear)}
    tensors |= {
        f"{prefix}{name}.lora_magnitude_vector": magnitude_O for name, magnitude_O in magnitudes.items()
    }
    head = task_head(model, task_index).state_dict()
    if task.sequence_class is None:
        write_tensors(folder / HEAD_FILE, head)
    else:
        tensors |= {f"base_model.model.score.{name}": tensor for name, tensor in head.items()}
    write_tensors(folder / PEFT_WEIGHTS, tensors)
    (folder / PEFT_CONFIG).write_bytes(encode_json(peft_config(task, rank, bool(magnitudes))))
    (folder / "README.md").write_text(readme(task, "peft"), encoding="utf-8")


def export_merged(task: ExportTask, folder: Path) -> None:
    """Write a folder for transformers' `from_pretrained` with the adapters merged, and a README.md.

    Raises:
        NotMergeableError: The adapter method cannot be merged.
        ValueError: There is no such task, or a merged weight is not finite.
    """
    model = task.model
    merged = merge_task(model, task.index)
    head, trunk = merged.head.state_dict(), merged.trunk.state_dict()
    for name in linears_from_conv1d(model):
        trunk[f"{name}.weight"] = trunk[f"{name}.weight"].t()
    tensors = {task.trunk_prefix + name: tensor for name, tensor in trunk.items()}
    if task.sequence_class is None:
        write_tensors(folder / HEAD_FILE, head)
    else:
        tensors |= {f"score.{name}": tensor for name, tensor in head.items()}
    write_tensors(folder / MERGED_WEIGHTS, tensors)
    config = copy_config(model.trunk)
    config.architectures = [(task.sequence_class or type(model.trunk)).__name__]
    config.id2label = dict(enumerate(task.label_names))
    config.label2id = {name: index for index, name in enumerate(task.label_names)}
    config.pad_token_id = config.get_text_config().pad_token_id = task.pad_id
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
    has_score = task.sequence_class is not None
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if has_score else "FEATURE_EXTRACTION",
        "base_model_name_or_path": task.base_source,
        "revision": task.base_revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": use_dora,
        "use_rslora": False,
        "fan_in_fan_out": bool(linears_from_conv1d(task.model)),
        "init_lora_weights": True,
        "target_modules": peft_targets(task),
        "modules_to_save": ["score"] if has_score else None,
    }


def linears_from_conv1d(model: RelevanceModel) -> list[str]:
    """Return the names of adapted linears whose weights are (in, out) in files."""
    layers = adapted_layers(model.trunk)
    return [name for name, layer in layers.items() if isinstance(layer.base, LinearFromConv1D)]


def peft_targets(task: ExportTask) -> list[str]:
    """Return the adapted linears by name suffix if that selects exactly them, else by full name.

    PEFT compares suffixes with the names of all modules, linears or not.
    """
    adapted = set(adapted_layers(task.model.trunk))
    trunk: Any = task.model.trunk
    modules = {name.removesuffix(".base") for name, _ in trunk.named_modules()}
    if task.sequence_class is None and trunk_options(trunk.config):
        modules.add("pooler.dense")  # where the export's code builds the trunk, and not here
    suffixes = sorted({name.rpartition(".")[2] for name in adapted})
    if {name for name in modules if name.rpartition(".")[2] in suffixes} == adapted:
        return suffixes
    return sorted(task.trunk_prefix + name for name in adapted)


def find_sequence_class(model: RelevanceModel) -> Any | None:
    """Return transformers' class that has the model's trunk and a linear `score` on its last token.

    None if there is no such class: some have further layers between trunk and logits.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    trunk: Any = model.trunk
    if model.pooling != "last" or type(trunk.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    model_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(trunk.config)]
    prefix = model_class.base_model_prefix
    with torch.device("meta"):
        built = model_class(copy_config(trunk))
    other_parameters = {name for name, _ in built.named_parameters() if not name.startswith(f"{prefix}.")}
    is_same_trunk = type(getattr(built, prefix, None)) is type(trunk)
    return model_class if is_same_trunk and other_parameters - {"score.bias"} == {"score.weight"} else None


def copy_config(trunk: Any) -> Any:
    """Return a copy of a trunk's config that may be changed."""
    return type(trunk.config).from_dict(trunk.config.to_dict())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file that transformers and peft can read."""
    written: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        cpu_tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, such as those of tied layers
        storage = cpu_tensor.untyped_storage().data_ptr()
        written[name] = cpu_tensor.clone() if storage in storages else cpu_tensor
        storages.add(storage)
    save_file(written, path, metadata={"format": "pt"})


def loading_code(task: ExportTask, export_format: ExportFormat) -> str:
    """Return the code that loads an export and computes `logits` of `input_ids` and `attention_mask`.

    Its other variables are `folder`, `dtype` and those of `loading_variables`.
    """
    if task.sequence_class is not None:
        return (TEMPLATES / f"sequence_{export_format}.txt").read_text()
    names = (f"trunk_{export_format}.txt", f"pool_{task.model.pooling}.txt")
    return "".join((TEMPLATES / name).read_text() for name in names)


def loading_variables(task: ExportTask) -> dict[str, Any]:
    """Return the variables of the loading code that depend on the task and its base model."""
    return {
        "base": task.base_source,
        "revision": task.base_revision,
        "num_labels": len(task.label_names),
        "pad_id": task.pad_id,
    }


def readme(task: ExportTask, export_format: ExportFormat) -> str:
    """Return the README.md of an export: how to load it."""
    code = loading_code(task, export_format)
    variables = "".join(
        f"{name} = {value!r}\n" for name, value in loading_variables(task).items() if name in code
    )
    content = "A LoRA adapter and a head" if export_format == "peft" else "A model"
    return (
        f"# {content} for one task of query-ad relevance\n\nBase model: `{task.base_source}`. Labels, "
        f"worst first: {', '.join(task.label_names)}.\n"
        f"Pad on the right with token {task.pad_id}. relevance.json, where there is one, holds the "
        "text template, its limits and the calibration,\n"
        "which was fitted to the model with unmerged "
        f"adapters.\n\n{BIAS_WARNING if task.sequence_class is not None else ''}"
        f'```python\nimport torch\n\nfolder = "."\ndtype = torch.float32\n{variables}\n{code}```\n'
    )
