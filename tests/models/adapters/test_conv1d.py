"""GPT-2's Conv1D as a linear."""

import pytest
import torch

from models.adapters.conv1d import LinearFromConv1D, linear_from_conv1d, linear_shape
from models.adapters.injection import adapted_layers, adapter_parameter_count, inject
from models.adapters.mtl_lora import MTLLoRAConfig


def test_conv1d_becomes_the_linear_that_equals_it() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    conv, x = Conv1D(6, 4), torch.randn(3, 4)
    linear = linear_from_conv1d(conv)
    assert linear_shape(conv) == linear_shape(linear) == (4, 6)
    torch.testing.assert_close(linear(x), conv(x))


def test_other_modules_stay() -> None:
    linear, norm = torch.nn.Linear(2, 3), torch.nn.LayerNorm(2)
    assert linear_from_conv1d(linear) is linear
    assert linear_shape(norm) is None


@pytest.mark.parametrize("targets", ("all-linear", ("c_attn",)))
def test_gpt2_with_new_adapters_answers_as_before(targets: tuple[str, ...] | str) -> None:
    from transformers import GPT2Config, GPT2Model

    trunk = GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=20, n_positions=16)).eval()
    config = MTLLoRAConfig(target_modules=targets, rank=2)
    planned = adapter_parameter_count(trunk, config, 2)
    ids_BS = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        before_BSD = trunk(input_ids=ids_BS).last_hidden_state
        routing = inject(trunk, config, num_tasks=2, seed=0)
        routing.task = torch.tensor([0, 1])
        torch.testing.assert_close(trunk(input_ids=ids_BS).last_hidden_state, before_BSD)
    assert planned == sum(parameter.numel() for parameter in trunk.parameters() if parameter.requires_grad)
    assert all(isinstance(layer.base, LinearFromConv1D) for layer in adapted_layers(trunk).values())
