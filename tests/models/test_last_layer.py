"""The last layer of a packed pass computes keys and values of all tokens, and the rest for the read ones.

test_packing.py tests that logits and gradients stay the same.

Shape legend: B rows, N tokens.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.routing import TaskRouting
from models.last_layer import ReadTokenSelector
from models.packing import pack_rows
from models.relevance import RelevanceModel
from pipeline.runtime.flops import step_flops, training_flops_per_token

FreshModel = Callable[..., RelevanceModel]
TASK_B, NUM_TOKENS = torch.tensor([0, 1, 0]), 4 + 3 + 5
IDS = [np.arange(2, 2 + length, dtype=np.int32) for length in (4, 3, 5)]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def packed_pass(model: RelevanceModel) -> torch.Tensor:
    ids_1N, rows = pack_rows(IDS, TASK_B.numpy(), np.zeros(3, np.int64))
    return model(ids_1N, torch.ones(3, 1, dtype=torch.long), TASK_B, rows)  # type: ignore[no-any-return]


def padded_pass(model: RelevanceModel) -> torch.Tensor:
    ids_BS = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(ids.astype(np.int64)) for ids in IDS], batch_first=True
    )
    return model(ids_BS, (ids_BS > 0).long(), TASK_B)  # type: ignore[no-any-return]


def tokens_taken(
    model: RelevanceModel, run: Callable[[RelevanceModel], torch.Tensor]
) -> dict[str, list[int]]:
    """Return the number of tokens that each kind of linear gets, layer by layer."""
    taken: dict[str, list[int]] = defaultdict(list)

    def note(kind: str) -> Callable[..., None]:
        return lambda linear, args: taken[kind].append(args[0].shape[:-1].numel())

    # the frozen linear inside an adapted one gets the same inputs
    linears = [
        (name.removesuffix(".base").rpartition(".")[2], m)
        for name, m in model.trunk.named_modules()
        if isinstance(m, torch.nn.Linear)
    ]
    handles = [linear.register_forward_pre_hook(note(kind)) for kind, linear in linears]
    run(model)
    for handle in handles:
        handle.remove()
    return dict(taken)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_only_last_keys_and_values_see_all_tokens(fresh_model: FreshModel, targets: Any) -> None:
    model = fresh_model(target_modules=targets)
    model.enable_packing()
    model.enable_packing()  # a second call has no effect
    all_tokens, read_tokens = [NUM_TOKENS, NUM_TOKENS], [NUM_TOKENS, len(IDS)]
    assert tokens_taken(model, packed_pass) == {
        kind: all_tokens if kind in ("k_proj", "v_proj") else read_tokens for kind in LINEARS
    }
    padded = dict.fromkeys(LINEARS, [15, 15])
    assert tokens_taken(model, padded_pass) == padded
    model.disable_packing()
    assert model.last_layer_selector is None and tokens_taken(model, padded_pass) == padded
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "broken", ["layers.1.mlp", "layers.1.self_attn.o_proj.base", "layers.1.self_attn.k_proj", "norm"]
)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_pass_does_not_affect_the_next_ones(
    fresh_model: FreshModel, broken: str, error: type[BaseException]
) -> None:
    model = fresh_model(stir=5, target_modules="all-linear")
    model.enable_packing()
    with torch.no_grad():
        packed, padded = packed_pass(model), padded_pass(model)

        def fail(module: torch.nn.Module, args: Any) -> None:
            raise error("injected failure")

        module = model.trunk.get_submodule(broken.replace("k_proj", "k_proj.base"))
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(error, match="injected failure"):
            packed_pass(model)
        handle.remove()
        assert model.routing.task is None and model.routing.context is None
        assert torch.equal(padded_pass(model), padded) and torch.equal(packed_pass(model), packed)


def test_first_of_several_outputs_is_scattered() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return 2 * x, x.shape[1]

    routing, layer = TaskRouting(), torch.nn.ModuleDict({"mlp": Doubled()})
    selector, x_153 = ReadTokenSelector(layer, routing), torch.rand(1, 5, 3)
    with routing.task_context(torch.zeros(1, 5, dtype=torch.long)):
        assert layer["mlp"](x_153)[1] == 5
        selector.begin(torch.tensor([1, 4]))
        y_153, taken = layer["mlp"](x_153)
    expected = torch.zeros(1, 5, 3)
    expected[:, [1, 4]] = 2 * x_153[:, [1, 4]]
    assert taken == 2 and torch.equal(y_153, expected)


def test_flops_count_the_restricted_last_layer(fresh_model: FreshModel) -> None:
    model = fresh_model(method=MTLLoRAConfig, target_modules="all-linear")
    assert step_flops(model) == (training_flops_per_token(model), 0)
    model.enable_packing()
    restricted = 32 * 32 + 32 * 32 + 3 * 32 * 48  # queries, output projection, feed-forward part
    assert step_flops(model) == (training_flops_per_token(model) - 4 * restricted, 4 * restricted)
