"""The relevance model on tiny random trunks."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from models.adapters.injection import adapted_layers
from models.backbone import Backbone, load_tokenizer
from models.relevance import HEAD_SCALE, RelevanceModel
from models.serialization.bundle import read_bundle, write_bundle
from tests.support.places import ROOT

FreshModel = Callable[..., RelevanceModel]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
KINDS = ("llama", "bert")


def eval_logits(
    model: RelevanceModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor, task_B: torch.Tensor
) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids_BS, mask_BS, task_B)


def batch_gradients(model: RelevanceModel, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(*batch), torch.tensor([1, 4, 2, 0, 3, 0])).backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_state().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_finite_exactly_for_the_task_labels(
    fresh_model: FreshModel, batch: Batch, kind: str
) -> None:
    logits_BC = eval_logits(fresh_model(kind), *batch)
    count_B = torch.tensor([2, 3, 5])[batch[2]]
    within_BC = torch.arange(5)[None, :] < count_B[:, None]
    assert logits_BC.shape == (6, 5) and logits_BC.dtype == torch.float32
    assert torch.equal(logits_BC.isfinite(), within_BC) and torch.equal(logits_BC.isneginf(), ~within_BC)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_state_reproduces_logits_bit_for_bit(
    fresh_model: FreshModel, batch: Batch, trunk_dirs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    trained = fresh_model(kind, seed=0, stir=7)
    write_bundle(tmp_path / "bundle", {}, trained.trainable_state(), trunk_dirs[kind])
    bundle = read_bundle(tmp_path / "bundle")
    fresh = fresh_model(kind, seed=99)
    assert not torch.equal(eval_logits(fresh, *batch), eval_logits(trained, *batch))
    fresh.load_trainable_state(bundle.tensors)
    assert torch.equal(eval_logits(fresh, *batch), eval_logits(trained, *batch))
    assert load_tokenizer(bundle.tokenizer_dir)("buy red shoes") == load_tokenizer(trunk_dirs[kind])(
        "buy red shoes"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_depend_on_the_seed_alone(fresh_model: FreshModel, kind: str) -> None:
    torch.manual_seed(1)
    first = fresh_model(kind, seed=3).trainable_state()
    torch.manual_seed(2)
    same, other = fresh_model(kind, seed=3).trainable_state(), fresh_model(kind, seed=4).trainable_state()
    assert all(torch.equal(first[name], same[name]) for name in first)
    random = {
        name
        for name in first
        if name.endswith(("down_RD", "mix_TN")) or (kind == "bert" and name == "heads.weight_KD")
    }
    assert random and not any(torch.equal(first[name], other[name]) for name in random)


def test_trainable_state_is_adapters_and_heads(fresh_model: FreshModel) -> None:
    model = fresh_model()
    adapters = {
        f"trunk.layers.{layer}.self_attn.{linear}.{part}"
        for layer in (0, 1)
        for linear in ("q_proj", "v_proj")
        for part in ("down_RD", "transform", "up_ONR", "mix_TN")
    }
    assert set(model.trainable_state()) == adapters | {"heads.weight_KD", "heads.bias_K"}


def test_training_changes_exactly_the_trainable_tensors(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
    )
    for _ in range(3):
        batch_gradients(model, batch)
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(model.trainable_state())


def test_weights_with_a_missing_tensor_are_refused(fresh_model: FreshModel) -> None:
    model = fresh_model()
    tensors = {name: tensor for name, tensor in model.trainable_state().items() if name != "heads.bias_K"}
    with pytest.raises(ValueError, match=r"another model: heads\.bias_K is missing"):
        model.load_trainable_state(tensors)


def test_weights_with_an_unknown_tensor_are_refused(fresh_model: FreshModel) -> None:
    model = fresh_model()
    with pytest.raises(ValueError, match=r"another model: trunk\.extra is unknown"):
        model.load_trainable_state({**model.trainable_state(), "trunk.extra": torch.zeros(1)})


def test_frozen_trunk_tensor_is_refused_as_unknown(fresh_model: FreshModel) -> None:
    model = fresh_model()
    name = "trunk.embed_tokens.weight"
    with pytest.raises(ValueError, match="embed_tokens.weight is unknown"):
        model.load_trainable_state({**model.trainable_state(), name: model.get_parameter(name)})


def test_mismatched_shape_is_refused_before_any_change(fresh_model: FreshModel) -> None:
    model = fresh_model()
    before = {name: tensor.detach().clone() for name, tensor in model.trainable_state().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()} | {"heads.bias_K": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"heads\.bias_K is \(3,\), the model has \(10,\)"):
        model.load_trainable_state(tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trainable_state().items())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_to_the_right_does_not_change_the_logits(
    fresh_model: FreshModel, batch: Batch, kind: str
) -> None:
    ids_BS, mask_BS, task_B = batch
    model = fresh_model(kind, stir=7)
    padded_ids_BS = functional.pad(ids_BS, (0, 9), value=5)
    padded = eval_logits(model, padded_ids_BS, functional.pad(mask_BS, (0, 9)), task_B)
    torch.testing.assert_close(padded, eval_logits(model, ids_BS, mask_BS, task_B), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_row_does_not_depend_on_rows_of_other_tasks(fresh_model: FreshModel, batch: Batch, kind: str) -> None:
    ids_BS, mask_BS, task_B = batch
    model = fresh_model(kind, stir=7)
    together = eval_logits(model, *batch)
    for row in range(6):
        length = int(mask_BS[row].sum())
        alone = eval_logits(
            model, ids_BS[row : row + 1, :length], mask_BS[row : row + 1, :length], task_B[row : row + 1]
        )
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


def test_tasks_give_different_logits_for_a_row(fresh_model: FreshModel, batch: Batch) -> None:
    ids_BS, mask_BS, _ = batch
    model = fresh_model(stir=7)
    with torch.no_grad():
        # equal heads, so that only the adapters can differ
        model.heads.weight_KD[2:4] = model.heads.weight_KD[:2]
        model.heads.bias_K.zero_()
    one, other = (eval_logits(model, ids_BS, mask_BS, torch.full((6,), task)) for task in (0, 1))
    assert (one[:, :2] - other[:, :2]).abs().min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(
    fresh_model: FreshModel, batch: Batch, kind: str
) -> None:
    model = fresh_model(kind, stir=7)
    model.eval()  # no dropout, so that two passes agree
    plain = batch_gradients(model, batch)
    runs = count_layer_runs(model)
    recompute_layers(model)
    checkpointed = batch_gradients(model, batch)
    assert set(runs.values()) == {2}, "layers were not recomputed"
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-6, atol=1e-8, msg=name)


def recompute_layers(model: RelevanceModel) -> None:
    model.enable_gradient_checkpointing()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # transformers checkpoints a layer only in training mode


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_uses_the_tasks_of_its_own_pass(
    fresh_model: FreshModel, batch: Batch, kind: str
) -> None:
    ids_BS, mask_BS, task_B = batch
    model = fresh_model(kind, stir=7)

    def gradients_of_both() -> dict[str, torch.Tensor]:
        model.zero_grad()
        first, second = model(ids_BS, mask_BS, task_B), model(ids_BS, mask_BS, (task_B + 1) % 3)
        (first[:, :2].square().sum() + second[:, :2].pow(3).sum()).backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.trainable_state().items()
            if parameter.grad is not None
        }

    plain = gradients_of_both()
    recompute_layers(model)
    checkpointed = gradients_of_both()
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-6, atol=1e-7, msg=name)


def test_retained_graph_can_be_recomputed_twice(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model(stir=7)
    recompute_layers(model)
    loss = model(*batch)[:, :2].square().sum()
    gradients_by_run = []
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradients_by_run.append(
            {
                name: parameter.grad.clone()
                for name, parameter in model.trainable_state().items()
                if parameter.grad is not None
            }
        )
    assert all(
        torch.equal(gradient, gradients_by_run[1][name]) for name, gradient in gradients_by_run[0].items()
    )


def test_plain_gradient_checkpointing_is_refused(fresh_model: FreshModel, batch: Batch) -> None:
    model = fresh_model(stir=7).train()
    model.trunk.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match=r"RelevanceModel\.enable_gradient_checkpointing"):
        model(*batch)[:, 0].sum().backward()


def count_layer_runs(model: RelevanceModel) -> dict[str, int]:
    runs: dict[str, int] = {}
    for name, layer in adapted_layers(model).items():
        layer.register_forward_pre_hook(lambda *_, name=name: runs.__setitem__(name, runs.get(name, 0) + 1))
    return runs


def test_folded_adapters_reproduce_the_task_logits(fresh_model: FreshModel, batch: Batch) -> None:
    ids_BS, mask_BS, _ = batch
    model, task_B = fresh_model(stir=7), torch.full((6,), 1)
    adapted = eval_logits(model, ids_BS, mask_BS, task_B)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            down_RD, up_OR = layer.fold(1)
            layer.base.weight += up_OR @ down_RD
            layer.up_ONR.zero_()
    torch.testing.assert_close(eval_logits(model, ids_BS, mask_BS, task_B), adapted, rtol=1e-4, atol=1e-5)


def test_new_decoder_scores_along_its_answer_direction(
    fresh_model: FreshModel, fresh_backbone: Callable[..., Backbone], batch: Batch
) -> None:
    ids_BS, mask_BS, task_B = batch
    backbone = fresh_backbone()
    with torch.no_grad():
        hidden_BSD = backbone.trunk(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    last_BD = hidden_BSD[torch.arange(6), mask_BS.sum(dim=1) - 1]
    logits_BC = eval_logits(fresh_model(), *batch)
    best_B = logits_BC.gather(1, torch.tensor([1, 2, 4])[task_B][:, None])[:, 0]
    torch.testing.assert_close(
        best_B - logits_BC[:, 0], HEAD_SCALE * last_BD @ backbone.answer_direction(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_new_model_starts_at_the_label_shares(fresh_model: FreshModel, batch: Batch, kind: str) -> None:
    model = fresh_model(kind, stir=7).eval()
    share_TC = torch.tensor(
        [[0.9, 0.1, 0.0, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.15, 0.25]]
    )
    with torch.no_grad():
        model.heads.init_biases_from_label_shares(model.pooled_states(*batch), batch[2], share_TC)
    logits_BC = eval_logits(model, *batch)
    for task, count in enumerate((2, 3, 5)):
        mean_C = logits_BC[batch[2] == task][:, :count].mean(dim=0)
        torch.testing.assert_close(mean_C, share_TC[task, :count].log(), rtol=1e-4, atol=1e-5)


BLOCKED_IMPORT = """
import sys
blocked = ("ray", "deepspeed", "mlflow", "great_expectations", "pyarrow", "pydantic", "pandas")
sys.modules.update(dict.fromkeys(blocked))
import models.relevance, models.serialization.bundle
assert all(sys.modules[name] is None for name in blocked)
from models.backbone import load_backbone
from models.config import BackboneConfig
backbone = load_backbone(BackboneConfig(source=sys.argv[1], dtype="float32"))
print("width", backbone.width, backbone.answer_direction().shape[0])
"""


def test_models_import_with_torch_and_transformers_alone(llama_dir: Path) -> None:
    command = [sys.executable, "-c", BLOCKED_IMPORT, str(llama_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("width 32 32")
