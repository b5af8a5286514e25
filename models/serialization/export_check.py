"""Check that an export gives the model's logits: run the code of its README.md on a few rows.

Shape legend: B rows, S tokens, C labels of the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from models.files import parse_json
from models.serialization.export import (
    MERGED_WEIGHTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    ExportFormat,
    ExportTask,
    loading_code,
    loading_variables,
)

# largest difference of logits relative to the largest logit; tensors are equal, so only rounding is left
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class ExportRefusedError(ValueError):
    """An export cannot be loaded or checked, or its logits differ from the model's."""


@dataclass(frozen=True)
class ExportSample:
    """Rows with the model's logits, and the code that loads the export.

    It holds no model, so the model can be released before the export is loaded.
    """

    input_ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    logits_BC: torch.Tensor
    dtype: torch.dtype  # of the base model
    code: str
    variables: dict[str, Any]


@torch.no_grad()
def sample_export(
    task: ExportTask,
    export_format: ExportFormat,
    input_ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
) -> ExportSample:
    """Return rows with the model's logits.

    Args:
        task: Task whose logits are computed.
        export_format: Format of the export to check.
        input_ids_BS: Token ids, padded on the right with `task.pad_id`.
        mask_BS: 1 for tokens, 0 for padding.
    """
    model: Any = task.model
    logits_BC = model(input_ids_BS, mask_BS, torch.full((len(input_ids_BS),), task.index))
    return ExportSample(
        input_ids_BS,
        mask_BS,
        logits_BC[:, : len(task.label_names)].float(),
        model.trunk.dtype,
        loading_code(task, export_format),
        loading_variables(task),
    )


def check_peft_installed() -> None:
    """Check that PEFT is installed, which PEFT exports are loaded with.

    Raises:
        ExportRefusedError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise ExportRefusedError(
            "package peft, which checks the export, is missing; run `pip install peft` or use --format merged"
        )


@torch.no_grad()
def check_export(folder: Path, export_format: ExportFormat, sample: ExportSample) -> None:
    """Load an export by the code of its README.md, in the base model's dtype, and compare logits.

    Raises:
        ExportRefusedError: It does not load, or its tensors or logits differ.
    """
    names: dict[str, Any] = sample.variables | {
        "torch": torch,
        "folder": str(folder),
        "dtype": sample.dtype,
        "input_ids": sample.input_ids_BS,
        "attention_mask": sample.mask_BS,
    }
    try:
        exec(sample.code, names)  # noqa: S102 - the code that users of the export run
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ExportRefusedError(
            f"the export does not load ({type(error).__name__}: {lines[0]}); {_remedy(export_format)}"
        ) from error
    if export_format == "peft":
        from peft import get_peft_model_state_dict

        loaded = get_peft_model_state_dict(names["model"])
        _check_adapter_names(folder, names["model"], set(loaded))
        _check_tensors(folder / PEFT_WEIGHTS, loaded, export_format)
    else:
        _check_tensors(folder / MERGED_WEIGHTS, names["model"].state_dict(), export_format)
    largest = max(1.0, sample.logits_BC.abs().max().item())
    difference = (names["logits"].float() - sample.logits_BC).abs().max().item()
    tolerance = TOLERANCES[sample.dtype] * largest
    if not difference <= tolerance:  # also refuses NaN
        raise ExportRefusedError(
            f"the export's logits differ from the model's by {difference:.2g}, more than rounding "
            f"({tolerance:.2g}); {_remedy(export_format)}"
        )


def _check_adapter_names(folder: Path, model: Any, loaded: set[str]) -> None:
    """Check that PEFT has the adapter tensors of the export and no others.

    In mixtures of experts, PEFT mistakes linears with some names for experts of older checkpoints and moves
    their adapters to other weights.

    Raises:
        ExportRefusedError: Names a linear with an adapter on one side only.
    """
    with safe_open(folder / PEFT_WEIGHTS, framework="pt") as file:
        differing = sorted(loaded ^ set(file.keys()))
    if not differing:
        return
    name = differing[0].removeprefix("base_model.model.").partition(".lora_")[0]
    targets = set(parse_json((folder / PEFT_CONFIG).read_bytes())["target_modules"])
    moved = sorted(targets - set(model.peft_config["default"].target_modules))
    reason = f": it takes {', '.join(moved[:8])} for names of experts" if moved else ""
    raise ExportRefusedError(
        f"PEFT would not adapt the same linears as this model ({name}){reason}; use --format merged"
    )


def _check_tensors(path: Path, loaded: Mapping[str, torch.Tensor], export_format: ExportFormat) -> None:
    """Check that each tensor of a file was loaded unchanged.

    Raises:
        ExportRefusedError: Names a tensor that is missing or differs.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = loaded.get(name)
            if tensor is None or not torch.equal(tensor, file.get_tensor(name).to(tensor.dtype)):
                raise ExportRefusedError(
                    f"the export's tensor {name} does not load into the model; {_remedy(export_format)}"
                )


def _remedy(export_format: ExportFormat) -> str:
    """Return the other way to use the model."""
    return (
        "use --format merged" if export_format == "peft" else "use `relevance predict` or `relevance score`"
    )
