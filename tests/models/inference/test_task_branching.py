"""One pass for all tasks equals a pass per task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.injection import adapted_layers, inject
from models.adapters.lora import LoRAConfig, LoRALinear
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig, MTLLoRALinear
from models.adapters.mtlora import MTLoRAConfig, MTLoRALinear
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.heads import TaskHeads
from models.inference.task_branching import TaskBranch, all_task_logits
from models.relevance import RelevanceModel
from models.serialization.bundle import read_bundle, write_bundle

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
METHODS = (
    MTLLoRAConfig,
    LoRAConfig,
    PerTaskLoRAConfig,
    MultiLoRAConfig,
    MoELoRAConfig,
    HydraLoRAConfig,
    DoRAConfig,
    MTLoRAConfig,
)
KINDS = ("llama", "bert")
BRANCHING: list[tuple[Any, dict[str, Any]]] = [
    (MTLLoRAConfig, {"task_layers": 1}),
    (MTLLoRAConfig, {"task_layers": 2}),
    (MTLLoRAConfig, {}),
    (MTLoRAConfig, {"task_layers": 1}),
    (MTLoRAConfig, {"task_layers": 1, "mode": "matrix"}),
    *[(method, {}) for method in METHODS[1:7]],
]


def repeated_task(task: int, batch: Batch) -> torch.Tensor:
    return torch.full((len(batch[0]),), task)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Set logits beyond a task's labels to 0."""
    return logits.masked_fill(logits == float("-inf"), 0.0)


def weighted_sum(logits: dict[int, torch.Tensor]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return sum(
        (
            (finite(logits[task]) * torch.randn(logits[task].shape, generator=generator)).sum()
            for task in sorted(logits)
        ),
        torch.zeros(()),
    )


def all_gradients(model: RelevanceModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.trainable_state().items()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(("method", "settings"), BRANCHING, ids=[f"{m.__name__}-{s}" for m, s in BRANCHING])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", (False, True), ids=("plain", "recomputed"))
def test_all_task_logits_equal_a_pass_per_task(
    fresh_model: FreshModel, batch: Batch, kind: str, method: Any, settings: dict[str, Any], recompute: bool
) -> None:
    model = fresh_model(kind, stir=7, method=method, **settings)
    ids_BS, mask_BS, _ = batch
    expected = {task: model(ids_BS, mask_BS, repeated_task(task, batch)) for task in range(3)}
    expected_gradients = all_gradients(model, weighted_sum(expected))
    if recompute:
        model.enable_gradient_checkpointing()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
    actual = all_task_logits(model, ids_BS, mask_BS)
    assert actual.keys() == expected.keys()
    for task in actual:
        torch.testing.assert_close(actual[task], expected[task], rtol=1e-5, atol=1e-5)
    actual_gradients = all_gradients(model, weighted_sum(actual))
    assert actual_gradients.keys() == expected_gradients.keys()
    for name in actual_gradients:
        torch.testing.assert_close(
            actual_gradients[name],
            expected_gradients[name],
            rtol=1e-4,
            atol=1e-4 * float(expected_gradients[name].abs().max()),
            msg=name,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", (slice(0, 1), slice(0, 3)), ids=("one row", "as many rows as tasks"))
def test_batches_as_small_as_a_task_count_branch(
    fresh_model: FreshModel, batch: Batch, kind: str, rows: slice
) -> None:
    model = fresh_model(kind, stir=7, task_layers=1)
    ids_BS, mask_BS = batch[0][rows], batch[1][rows]
    for task, logits in all_task_logits(model, ids_BS, mask_BS).items():
        torch.testing.assert_close(
            logits, model(ids_BS, mask_BS, torch.full((len(ids_BS),), task)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    (({"task_layers": 1}, [6, 18]), ({}, [18, 18]), ({"method": LoRAConfig}, [6, 6])),
)
def test_rows_branch_at_the_first_task_dependent_layer(
    fresh_model: FreshModel, batch: Batch, settings: dict[str, Any], expected: list[int]
) -> None:
    model = fresh_model("llama", stir=7, **settings)
    seen: list[int] = []
    for layer in model.trunk.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
    all_task_logits(model, batch[0], batch[1])
    assert seen == expected


@pytest.mark.parametrize(
    ("settings", "expected"), (({"task_layers": 1}, 4 / 6), ({}, 1.0), ({"method": LoRAConfig}, 1 / 3))
)
def test_cost_share_counts_the_layers_run(
    fresh_model: FreshModel, settings: dict[str, Any], expected: float
) -> None:
    assert TaskBranch(fresh_model("llama", **settings).trunk, 1, 3).cost_share == pytest.approx(expected)


def test_all_task_logits_leave_the_model_unchanged(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model(stir=7, task_layers=1)
    before = model(*batch)
    all_task_logits(model, batch[0], batch[1])
    assert torch.equal(model(*batch), before)


def test_task_layers_have_lora_below_them(fresh_model: FreshModel) -> None:
    for method, upper in ((MTLLoRAConfig, MTLLoRALinear), (MTLoRAConfig, MTLoRALinear)):
        layers = adapted_layers(fresh_model(method=method, task_layers=1))
        assert {type(layer) for name, layer in layers.items() if ".layers.0." in name} == {LoRALinear}
        assert {type(layer) for name, layer in layers.items() if ".layers.1." in name} == {upper}
        assert len({layer.scale for layer in layers.values()}) == 1


def test_tasks_below_the_task_layers_share_everything(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model(stir=7, task_layers=1)
    states = []
    model.trunk.layers[0].register_forward_hook(lambda _, __, output: states.append(output))
    for task in range(3):
        model(batch[0], batch[1], repeated_task(task, batch))
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def decoder_of_another_family(family: str) -> RelevanceModel:
    """Build a decoder whose layers encode positions differently from Llama."""
    import transformers

    sizes: dict[str, Any] = {
        "opt": (
            "OPT",
            {
                "hidden_size": 32,
                "ffn_dim": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 32,
            },
        ),
        "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
        "gpt_neox": (
            "GPTNeoX",
            {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        ),
    }
    name, settings = sizes[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=40, pad_token_id=0, **settings)
    config._attn_implementation = "eager"
    trunk = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    # OPT flattens rows before its feed-forward linears
    targets: Any = ("q_proj", "v_proj") if family == "opt" else "all-linear"
    routing = inject(trunk, MTLLoRAConfig(target_modules=targets, rank=4), 3, seed=0)
    model = RelevanceModel(trunk, TaskHeads(32, (2, 3, 5)), routing, "last").eval()
    with torch.no_grad():
        for parameter in model.trainable_state().values():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", ("opt", "bloom", "mpt", "gpt_neox"))
@pytest.mark.parametrize("rows", (4, 6))
def test_other_decoders_branch_correctly_or_are_refused(batch: Batch, family: str, rows: int) -> None:
    ids_BS, mask_BS = batch[0][:rows], batch[1][:rows]
    model = decoder_of_another_family(family)
    try:
        actual = all_task_logits(model, ids_BS, mask_BS)
    except (ValueError, RuntimeError):
        assert family in ("bloom", "mpt")
    else:
        for task, logits in actual.items():
            torch.testing.assert_close(
                logits, model(ids_BS, mask_BS, torch.full((rows,), task)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_saved_weights_reproduce_logits_for_every_method(
    fresh_model: FreshModel, batch: Batch, trunk_dirs: dict[str, Path], tmp_path: Path, method: Any
) -> None:
    trained = fresh_model(stir=7, method=method)
    write_bundle(tmp_path / "bundle", {}, trained.trainable_state(), trunk_dirs["llama"])
    fresh = fresh_model(seed=99, method=method)
    fresh.load_trainable_state(read_bundle(tmp_path / "bundle").tensors)
    assert torch.equal(fresh(*batch), trained(*batch))


@pytest.mark.e2e
@pytest.mark.parametrize(
    "method", (MTLLoRAConfig, LoRAConfig, MTLoRAConfig), ids=lambda method: method.__name__
)
def test_compiled_model_equals_the_plain_one(fresh_model: FreshModel, batch: Batch, method: Any) -> None:
    model = fresh_model(stir=7, method=method)
    expected = model(*batch)
    expected_gradients = all_gradients(model, weighted_sum({0: expected}))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    actual = compiled(*batch)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in all_gradients(model, weighted_sum({0: actual})).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    other_tasks = (batch[2] + 1) % 3  # task ids are no compiled constants
    torch.testing.assert_close(
        compiled(batch[0], batch[1], other_tasks),
        model(batch[0], batch[1], other_tasks),
        rtol=1e-5,
        atol=1e-5,
    )
