"""The private APIs of torch behind models/torch_internals.py exist and do what it needs."""

import pytest
import torch

from models.torch_internals import configure_dynamic_compilation, cpu_has_bfloat16_instructions
from tests.support.pinned_versions import pinned_version


def test_torch_has_the_private_apis(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = (
        f"torch {torch.__version__} differs from the tested {pinned_version('torch')}: see torch_internals.py"
    )
    dynamo, fx = torch._dynamo.config, torch.fx.experimental._config
    assert hasattr(torch.cpu, "_is_avx512_bf16_supported"), hint
    for config, name in ((dynamo, "recompile_limit"), (dynamo, "specialize_float"), (fx, "use_duck_shape")):
        assert hasattr(config, name), f"{config.__name__}.{name} is gone: {hint}"
        monkeypatch.setattr(config, name, getattr(config, name))  # restores what is set below
    assert isinstance(cpu_has_bfloat16_instructions(), bool), hint
    configure_dynamic_compilation(recompile_limit=17)
    assert (dynamo.recompile_limit, dynamo.specialize_float, fx.use_duck_shape) == (17, True, False), hint
