"""What rows begin with goes through the model once: logits and gradients stay those of the whole rows.

Shape legend: B rows, T tasks.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trunks import WORDS

from models.beginnings import LaidOut, attended, lay_out, tokens_laid_out
from models.config import DoRAConfig, HydraLoRAConfig, LoRAConfig, MTLLoRAConfig, PerTaskLoRAConfig
from models.relevance import RelevanceModel

FreshModel = Callable[..., RelevanceModel]
PAD = 0
TASK_B = np.array([1, 0, 1, 2, 1, 0])
CLOSE = 5e-6  # weights are float64, but transformers has softmax, norms and rotations in float32


def rows_of(length_T: list[int], tails: list[int], seed: int = 0) -> list[np.ndarray]:
    """A row of each of TASK_B: its task's beginning, and that many tokens more."""
    draw = np.random.default_rng(seed)
    beginning_T = [draw.integers(2, len(WORDS), length) for length in length_T]
    rows = [np.concatenate([beginning_T[task], draw.integers(2, len(WORDS), tail)]) for task, tail in zip(TASK_B, tails, strict=True)]
    return [row.astype(np.int32) for row in rows]


def whole_logits(model: RelevanceModel, rows: list[np.ndarray]) -> torch.Tensor:
    length_B = torch.tensor([len(row) for row in rows])
    ids_BS = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True)
    mask_BS = (torch.arange(ids_BS.shape[1]) < length_B[:, None]).long()
    return model(ids_BS, mask_BS, torch.from_numpy(TASK_B))  # type: ignore[no-any-return]


def logits_of(model: RelevanceModel, laid_out: LaidOut) -> torch.Tensor:
    mask_BS = torch.from_numpy(laid_out.mask_BS)
    return model(torch.from_numpy(laid_out.ids_RS), mask_BS, torch.from_numpy(TASK_B), laid_out.beginnings)  # type: ignore[no-any-return]


def gradients(model: RelevanceModel, logits_BC: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits_BC, torch.tensor([1, 0, 2, 4, 0, 1])).backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_state().items()}


METHODS = {
    "mtl_lora": {"method": MTLLoRAConfig},
    "mtl_lora of diagonals": {"method": MTLLoRAConfig, "transform": "diagonal"},
    "lora": {"method": LoRAConfig},
    "per_task_lora": {"method": PerTaskLoRAConfig},
    "hydra_lora": {"method": HydraLoRAConfig},
    "dora": {"method": DoRAConfig},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "length_T", [[4, 4, 4], [3, 9, 1], [0, 5, 0], [2, 30, 17]], ids=["as long", "unlike", "one alone", "longer than what follows"]
)
def test_logits_and_gradients_are_those_of_the_whole_rows(fresh_model: FreshModel, method: str, length_T: list[int]) -> None:
    model = fresh_model(stir=5, **METHODS[method]).double().train()
    rows = rows_of(length_T, [6, 2, 7, 1, 3, 5])
    expected = whole_logits(model, rows)
    expected_gradients = gradients(model, expected)
    found = logits_of(model, lay_out(rows, TASK_B, np.array(length_T), PAD))
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    for name, gradient in gradients(model, found).items():
        assert (gradient - expected_gradients[name]).norm() <= 20 * CLOSE * expected_gradients[name].norm(), name
        assert expected_gradients[name].norm() > 0, name


@settings(deadline=None, max_examples=25)
@given(length_T=st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), tails=st.lists(st.integers(1, 9), min_size=6, max_size=6))
def test_any_lengths_will_do(fresh_model: FreshModel, length_T: list[int], tails: list[int]) -> None:
    model, rows = fresh_model(stir=5), rows_of(length_T, tails, seed=sum(tails))
    laid_out = lay_out(rows, TASK_B, np.array(length_T), PAD)
    assert laid_out.ids_RS.size - laid_out.num_padding == sum(tails) + sum(length_T)
    assert laid_out.ids_RS.size == tokens_laid_out(np.array([len(row) for row in rows]), TASK_B, np.array(length_T))
    assert int(laid_out.beginnings.position_RS.max()) < max(map(len, rows))  # no position that a model may not have
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, laid_out), whole_logits(model, rows), rtol=1e-4, atol=1e-4)


def test_a_row_s_logits_do_not_depend_on_the_rows_beside_it(fresh_model: FreshModel) -> None:
    model, rows = fresh_model(stir=5), rows_of([4, 11, 3], [6, 2, 7, 1, 3, 5])
    other = [*rows[:-1], np.append(rows[-1][:4], [9, 9, 9, 9, 9]).astype(np.int32)]
    with torch.no_grad():
        one, two = (logits_of(model, lay_out(some, TASK_B, np.array([4, 11, 3]), PAD)) for some in (rows, other))
    assert torch.equal(one[:-1], two[:-1]) and not torch.equal(one[-1], two[-1])


def test_rows_keep_what_follows_and_beginnings_lie_end_to_end_behind_them() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    laid_out = lay_out(rows, np.array([2, 2, 0]), np.array([1, 0, 3]), PAD)
    assert laid_out.ids_RS.tolist() == [[1, 2], [3, PAD], [6, PAD], [5, 7], [8, 9]]
    assert laid_out.mask_BS.tolist() == [[1, 1], [1, 0], [1, 0]]
    task_RS, position_RS, place_RP, before_R = (tensor.tolist() for tensor in laid_out.beginnings)
    assert task_RS == [[2, 2], [2, 2], [0, 0], [0, 2], [2, 2]]
    assert position_RS == [[3, 4], [3, 3], [1, 1], [0, 0], [1, 2]]  # padding has one that the whole row has
    assert place_RP == [[7, 8, 9], [7, 8, 9], [6, 6, 6], [6, 6, 6], [7, 8, 9]]
    assert before_R == [3, 3, 1, 0, 1]
    assert laid_out.num_padding == 2


def test_a_token_attends_to_its_own_beginning_and_to_its_row_up_to_itself() -> None:
    rows = [np.array(row, np.int32) for row in ([7, 8, 9, 1, 2], [7, 8, 9, 3], [5, 6])]
    seen_RSK = attended(lay_out(rows, np.array([2, 2, 0]), np.array([1, 0, 3]), PAD).beginnings)[:, 0].long().tolist()
    assert seen_RSK[0] == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert [line[:3] for line in seen_RSK[2]] == [[1, 0, 0]] * 2  # a beginning of one token
    assert seen_RSK[3] == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]  # the ends of two beginnings
    assert seen_RSK[4] == [[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]  # what begins in the row before
