"""Undocumented APIs of transformers behind models/transformers_internals.py exist and do what it needs."""

import torch
import transformers

from models.transformers_internals import (
    attention_function,
    attention_implementation,
    cached_states,
    join_windows,
    partition_windows,
    register_attention,
    remove_quantization_config,
)
from tests.support.pinned_versions import pinned_version
from tests.support.tiny_swin import build_trunk
from tests.support.tiny_trunks import tiny_llama

HINT = (
    f"transformers {transformers.__version__} differs from the tested {pinned_version('transformers')}: "
    "see transformers_internals.py"
)


def test_transformers_has_the_attention_apis() -> None:
    trunk = tiny_llama(tied=True).model
    for name in ("sdpa", "eager"):
        trunk.set_attn_implementation(name)
        assert attention_implementation(trunk) == name, HINT
        assert callable(attention_function(trunk)), f"{name} attention is no function: {HINT}"
    calls = []
    eager = attention_function(trunk)
    assert eager is not None

    def recorded(*args: torch.Tensor, **options: object) -> object:
        calls.append(len(args))
        return eager(*args, **options)

    ids = torch.tensor([[2, 3, 4]])
    expected = trunk(input_ids=ids).last_hidden_state
    register_attention("recorded", recorded, mask_of="eager")
    trunk.set_attn_implementation("recorded")
    assert attention_function(trunk) is None
    assert torch.equal(trunk(input_ids=ids).last_hidden_state, expected) and calls, HINT


def test_transformers_has_the_cache_and_quantization_apis() -> None:
    model = tiny_llama(tied=True)
    cache = transformers.DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([[2, 3, 4]]), past_key_values=cache, use_cache=True)
    keys, values = cached_states(cache)
    assert [tuple(states.shape) for states in (*keys, *values)] == [(1, 2, 3, 8)] * 4, HINT
    model.config.quantization_config = {"quant_method": "gguf"}
    remove_quantization_config(model)
    assert not hasattr(model.config, "quantization_config") and model.hf_quantizer is None, HINT


def test_transformers_has_the_swin_apis() -> None:
    block = build_trunk().encoder.layers[0].blocks[1]
    block.layernorm_before = torch.nn.Identity()
    hidden_BLC = torch.randn(2, 9 * 11, 16, dtype=torch.float64)
    windows = partition_windows(block, hidden_BLC, (9, 11))
    assert windows.padded_size == (12, 12) and windows.states_NWC.shape == (2 * 9, 16, 16), HINT
    assert windows.mask is not None, f"shifted windows have no mask: {HINT}"
    joined_BLC = join_windows(block, windows.states_NWC, windows.padded_size, (9, 11))
    assert torch.equal(joined_BLC, hidden_BLC), HINT
