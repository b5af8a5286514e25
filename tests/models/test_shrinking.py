"""Small configs of the architectures that users bring."""

from typing import Any

import pytest
import torch

from models.shrinking import shrink_config

PHI_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "original_max_position_embeddings": 4096,
}
CONFIGS: dict[str, dict[str, Any]] = {  # published models with unusual relations between their sizes
    "llama": {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
    "qwen2": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4},
    "phi3": {"rope_parameters": PHI_ROPE},
    "gemma2": {},
    "gpt_neox": {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "deepseek_v3": {},
    "qwen3_moe": {},
    "mixtral": {},
    "bamba": {},
    "gemma3": {},
    "gemma4_text": {"num_hidden_layers": 12, "num_kv_shared_layers": 6},  # sizes that differ by layer
    "modernbert": {},
    "deberta-v2": {},
    "dbrx": {
        "d_model": 6144,
        "n_heads": 48,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    },
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_small_model_has_the_modules_of_the_full_one(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModel

    config: Any = CONFIG_MAPPING[model_type](**CONFIGS[model_type])
    with torch.device("meta"):
        full, small = AutoModel.from_config(config), AutoModel.from_config(shrink_config(config))
    assert [name for name, _ in small.named_modules()] == [name for name, _ in full.named_modules()]
    assert sum(parameter.numel() for parameter in small.parameters()) < 20_000_000


@pytest.mark.parametrize("model_type", CONFIGS)
def test_small_model_runs(model_type: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModel

    config: Any = CONFIG_MAPPING[model_type](use_cache=False, **CONFIGS[model_type])
    trunk = AutoModel.from_config(shrink_config(config))
    ids_BS = torch.arange(10, 20).reshape(2, 5)
    with torch.no_grad():
        states = trunk(input_ids=ids_BS).last_hidden_state
    assert states.shape[:2] == ids_BS.shape
    assert torch.isfinite(states).all()
