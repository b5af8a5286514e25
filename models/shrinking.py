"""The config of an architecture with small widths: the same modules under the same names, few weights.

Depth and every choice of the architecture stay, so each layer of the full model has its small counterpart.
One power of two divides the widths of heads, another the numbers of heads, and their product the widths of
states. That keeps the relations between them: heads fill the width, rotary sections fill half a head.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_VOCABULARY = 256
MAX_RECURRENT_SIZE = 16  # states of recurrent layers, and tokens that they take at once
MIN_HEAD_WIDTH = 8  # partial rotary positions need some pairs of dimensions
MIN_HEADS = 4
MIN_KEY_HEADS = 2
WIDTH_STEP = 8  # fused experts take rows of 16 bytes
MIN_HEADLESS_WIDTH = 64  # width of states in architectures without heads

# Kinds of settings by their names, in the order of the search. All other settings keep their values.
VOCABULARY = re.compile(r"(\w+_)?vocab_size\w*")
TOKEN_ID = re.compile(r"\w+_token_(id|index)|\w+_index")
HEAD_WIDTH = re.compile(
    r"(\w+_)?head_?dim|d_head|dim_head|mamba_d_head|attention_head_size|kv_channels|rotary_dim"
)
HEAD_COUNT = re.compile(
    r"(\w+_)?(num|n)_(\w+_)?heads(_per_layer)?|n_head|\w*attention_heads|num_query_groups|(mamba_)?n_?groups"
)
STATE_WIDTH = re.compile(
    r"(\w+_)?(hidden|intermediate|embedding|emb|head|feed_forward|bottleneck)_size(_\w+)?"
    r"|(\w+_)?(hidden|ffn|emb|embed|embedding|word_embed_proj)_dim|d_(model|inner|latents)|n_(embd|inner)"
    r"|dff|dim(_ff)?|lru_width|mamba_d_ssm|\w+_lora_rank|\w*dt_rank|time_step_rank"
)
RECURRENT_SIZE = re.compile(r"(mamba_)?chunk_size|(ssm_)?state_size|mamba_d_state")
ROUTED_EXPERTS = re.compile(r"(moe_)?(num|n)_(routed_|local_)?experts")
EXPERTS_PER_TOKEN = re.compile(r"num_experts_per_tok(en)?|moe_(topk|top_k|k)")
ROUTER_GROUPS = re.compile(r"n_group|num_expert_group")


def shrink_config(config: Any, keep_widths: bool = False) -> Any:
    """Return a config of the same class and depth with small widths, vocabulary and numbers of experts.

    Args:
        config: The config of a model.
        keep_widths: Keep widths and numbers of heads, whose relations are then certainly kept.
    """
    return type(config).from_dict(_ConfigShrinker(config, keep_widths).settings())


@dataclass(frozen=True)
class _ConfigShrinker:
    """Shrinks a config, or a config nested in it."""

    config: Any
    keep_widths: bool

    def settings(self, divisors: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return the settings of the small config.

        Args:
            divisors: Of the config around this one, if it only holds settings of a part of that model.
        """
        full = self.config.to_dict()
        width_divisor, count_divisor = divisors or self._divisors(full)
        return {
            name: self._shrink(name, value, full, width_divisor, count_divisor)
            for name, value in full.items()
        }

    def _divisors(self, full: dict[str, Any]) -> tuple[int, int]:
        """Return the divisors of head widths and of head counts, each a power of two."""
        if self.keep_widths:
            return 1, 1
        blocks = [full, *self._parts(full)]
        counts = [count for block in blocks for count in _integers_of(block, HEAD_COUNT) if count > 1]
        widths = [width for block in blocks for width in _integers_of(block, HEAD_WIDTH) if width > 0]
        hidden, heads = (self._common_setting(full, name) for name in ("hidden_size", "num_attention_heads"))
        if not counts:  # no attention
            return _power_of_two([hidden], hidden // MIN_HEADLESS_WIDTH), 1
        if not widths and heads:
            widths.append(hidden // heads)
        smallest = min(widths, default=MIN_HEAD_WIDTH)
        sections = list(_rotary_sections(full))
        width_divisor = _power_of_two([*widths, *sections], smallest // MIN_HEAD_WIDTH)
        limit = min(min(counts) // MIN_KEY_HEADS, (heads or MIN_HEADS) // MIN_HEADS)
        count_divisor = _power_of_two(counts, limit)
        return width_divisor, max(math.gcd(hidden, width_divisor * count_divisor) // width_divisor, 1)

    def _parts(self, full: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the settings of nested configs of a part, such as those of DBRX's attention."""
        for name, value in full.items():
            if not isinstance(value, dict):  # reading a setting that differs by layer raises an error
                continue
            inner = getattr(self.config, name, None)
            if hasattr(inner, "to_dict") and _ConfigShrinker(inner, self.keep_widths).is_part():
                yield value

    def is_part(self) -> bool:
        """Return whether the config lacks the width or the heads that the config of a model has."""
        full = self.config.to_dict()
        return not (self._common_setting(full, "hidden_size") and _integers_of(full, HEAD_COUNT))

    def _common_setting(self, full: dict[str, Any], name: str) -> int:
        """Return an integer setting by its common name in transformers, 0 if there is none."""
        value = full.get(self.config.attribute_map.get(name, name))
        return value if isinstance(value, int) else 0

    def _shrink(
        self, name: str, value: Any, full: dict[str, Any], width_divisor: int, count_divisor: int
    ) -> Any:
        """Return the small value of a setting."""
        if isinstance(value, dict) and hasattr(inner := getattr(self.config, name), "to_dict"):
            nested = _ConfigShrinker(inner, self.keep_widths)
            return nested.settings((width_divisor, count_divisor) if nested.is_part() else None)
        if name in ("rope_parameters", "rope_scaling") and value:
            return _shrink_rope(value, width_divisor)
        if isinstance(value, dict) and name == "per_layer_config":
            return {
                layer: {
                    key: self._shrink(key, item, full, width_divisor, count_divisor)
                    for key, item in layer_settings.items()
                }
                for layer, layer_settings in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._shrink(name, item, full, width_divisor, count_divisor) for item in value]
        if name == "layerdrop":
            return 0.0  # a dropped layer gets no gradient
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return value
        if VOCABULARY.fullmatch(name):
            return min(value, MAX_VOCABULARY)
        if TOKEN_ID.fullmatch(name):
            return min(value, MAX_VOCABULARY - 1)
        if HEAD_WIDTH.fullmatch(name):
            return max(value // width_divisor, 1)
        if HEAD_COUNT.fullmatch(name):
            return max(value // count_divisor, 1)
        if STATE_WIDTH.fullmatch(name):
            return _shrink_width(value, width_divisor * count_divisor)
        if RECURRENT_SIZE.fullmatch(name):
            return min(value, MAX_RECURRENT_SIZE)
        if ROUTED_EXPERTS.fullmatch(name):
            return min(value, _fewest_experts(full))
        return value


def _shrink_width(width: int, divisor: int) -> int:
    """Return a divided width, rounded up to a multiple of WIDTH_STEP."""
    exact = width // divisor
    if width % divisor == 0 and exact % WIDTH_STEP == 0:
        return exact
    return min(width, -(-exact // WIDTH_STEP) * WIDTH_STEP) or 1


def _shrink_rope(rope: dict[str, Any], divisor: int) -> dict[str, Any]:
    """Return rotary settings whose sections and frequency factors fit the small head."""
    small: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            small[name] = _shrink_rope(value, divisor)
        elif name == "mrope_section":
            small[name] = [section // divisor for section in value]
        elif name in ("short_factor", "long_factor"):
            small[name] = value[::divisor]
        else:
            small[name] = value
    return small


def _fewest_experts(full: dict[str, Any]) -> int:
    """Return the fewest experts that leave the router a choice in each of its groups."""
    chosen = max(_integers_of(full, EXPERTS_PER_TOKEN), default=1)
    groups = max(_integers_of(full, ROUTER_GROUPS), default=1) or 1
    allowed = full.get("topk_group") or groups
    return groups * max(2, -(-chosen // allowed), -(-(chosen + 1) // groups))


def _rotary_sections(settings: dict[str, Any]) -> Iterator[int]:
    """Yield the widths of all rotary sections."""
    for name, value in settings.items():
        if isinstance(value, dict) and not name.endswith("_config"):
            yield from _rotary_sections(value)
        elif name == "mrope_section" and value:
            yield from value


def _integers_of(settings: dict[str, Any], pattern: re.Pattern[str]) -> list[int]:
    """Return the integers in the settings whose names match; a setting may have one per layer."""
    values: list[Any] = []
    for name, value in settings.items():
        if pattern.fullmatch(name):
            values += value if isinstance(value, list | tuple) else [value]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool)]


def _power_of_two(values: list[int], limit: int) -> int:
    """Return the largest power of two up to `limit`, at least 1, that divides all values."""
    power = 1
    while power * 2 <= limit and all(value % (power * 2) == 0 for value in values):
        power *= 2
    return power
