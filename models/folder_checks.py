"""Checks of a backbone's folder from its small files, before anything is loaded."""

import logging
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from models.files import parse_json

logger = logging.getLogger(__name__)

# names in safetensors; a weight in any other dtype needs scales, which only its own format defines
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
# tensors that are no weights: positions, counters, tables of indices, and causal masks of older checkpoints
INTEGER_TENSORS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|num_batches_tracked|relative_position_index|tid2eid"
    r"|(attn|attention|crossattention)\.bias|causal_mask)$"
)


class BackboneUnavailableError(RuntimeError):
    """The backbone is not installed, not on disk, not on the hub, or of an unsupported kind."""


def check_folder(folder: Path, quantization: str | None = None) -> None:
    """Check that a folder is a complete model whose code and weight format are supported.

    Args:
        folder: Folder of a model in the format of transformers.
        quantization: The setting `backbone.quantization`.

    Raises:
        BackboneUnavailableError: Names the file and the remedy.
    """
    _check_no_adapter(folder)
    if not (folder / "config.json").is_file():
        raise BackboneUnavailableError(
            f"folder {folder} has no config.json; backbone.source must be a model folder, a .gguf file or "
            "a hub id"
        )
    _check_no_own_code(folder)
    settings = quantization_settings(folder)
    if settings is None:
        _check_stored_dtypes(folder)
    else:
        _check_quantization(folder, settings, quantization)
    if settings is not None or quantization is not None:
        _check_bitsandbytes(folder, quantization)


def quantization_settings(folder: Path) -> dict[str, Any] | None:
    """Return the `quantization_config` in config.json, None if there is none.

    Multimodal models may have it in the config of their text model.
    """
    config = read_json_object(folder / "config.json")
    text_config = config.get("text_config")
    for block in (config, text_config if isinstance(text_config, dict) else {}):
        if isinstance(block.get("quantization_config"), dict):
            return dict(block["quantization_config"])
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        BackboneUnavailableError: The file holds no JSON object.
    """
    try:
        value = parse_json(path.read_bytes(), allow_infinity=True)
    except ValueError as error:
        raise BackboneUnavailableError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise BackboneUnavailableError(f"{path} is not a JSON object; fetch it again")
    return value


def _check_no_adapter(folder: Path) -> None:
    """Refuse a folder with a PEFT adapter.

    transformers would load the adapter's own base model in its place.
    """
    if (folder / "adapter_config.json").exists():
        raise BackboneUnavailableError(
            f"{folder} has an adapter_config.json, and an adapter is not applied to a backbone; merge it "
            "first and set backbone.source to the merged folder:\n"
            "    from peft import AutoPeftModelForCausalLM\n"
            f"    AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload()"
            '.save_pretrained("merged")  # and copy the tokenizer'
        )


def _check_no_own_code(folder: Path) -> None:
    """Refuse a folder that needs Python code of its own.

    Many checkpoints name code that transformers contains too. Then the library's class is used, and the
    checkpoint's code is not run.
    """
    for name, is_known in (("config.json", _is_known_model), ("tokenizer_config.json", _is_known_tokenizer)):
        path = folder / name
        settings = read_json_object(path) if path.is_file() else {}
        if not settings.get("auto_map"):
            continue
        if not is_known(settings):
            raise BackboneUnavailableError(
                f"{folder} needs code of its own, which is never run: auto_map in {name}; use a model whose "
                "code is in transformers"
            )
        logger.info("  auto_map in %s is not used: transformers has the code of this model", path)


def _is_known_model(config: dict[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _is_known_tokenizer(config: dict[str, Any]) -> bool:
    import transformers

    return hasattr(transformers, str(config.get("tokenizer_class")))


def _check_quantization(folder: Path, settings: dict[str, Any], quantization: str | None) -> None:
    """Refuse a quantised checkpoint unless bitsandbytes stored it in 4 or 8 bits and no setting is given."""
    method = settings.get("quant_method") or "an unnamed method"
    # early checkpoints of bitsandbytes have no quant_method
    is_bitsandbytes = method == "bitsandbytes" or settings.get("load_in_4bit") or settings.get("load_in_8bit")
    if not is_bitsandbytes or settings.get("llm_int8_has_fp16_weight"):
        raise BackboneUnavailableError(
            f"{folder} is a checkpoint quantised by {method}, which is not supported; use the unquantised one"
        )
    if quantization is not None:
        raise BackboneUnavailableError(
            f"{folder} is quantised already, and backbone.quantization is {quantization}; leave the setting "
            "out or use the unquantised checkpoint"
        )
    for output_embeddings in ("head.weight", "embed_out.weight"):  # the task heads are initialised from them
        _check_stored_dtypes(folder, output_embeddings)


def _check_bitsandbytes(folder: Path, quantization: str | None) -> None:
    """Check that bitsandbytes is installed, in a version that transformers supports."""
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        reason = (
            f"backbone.quantization is {quantization}" if quantization else f"{folder} is quantised by it"
        )
        raise BackboneUnavailableError(
            f"package bitsandbytes is missing or too old, and {reason}; run pip install -U bitsandbytes"
        )


def _check_stored_dtypes(folder: Path, suffix: str = "") -> None:
    """Refuse weights whose name ends in `suffix` and whose dtype is not in FLOAT_DTYPES.

    transformers would cast them and ignore their scales. Names say little: fused experts, for example, end
    in `gate_up_proj`. So every tensor is a weight unless INTEGER_TENSORS matches its name.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.endswith(suffix) or INTEGER_TENSORS.search(name):
                        continue
                    dtype = file.get_slice(name).get_dtype()
                    if dtype not in FLOAT_DTYPES:
                        raise BackboneUnavailableError(
                            f"{path} stores {name} as {dtype}, and only floating-point weights are "
                            "supported; use the unquantised checkpoint"
                        )
        except (OSError, SafetensorError) as error:
            raise BackboneUnavailableError(
                f"{path} is not a complete safetensors file ({error}); fetch it again"
            ) from error
