"""Evaluations between steps: which rows, when, of what worth, and when there is no point in going on."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss

from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows
from pipeline.training.step import TrainingDivergedError
from pipeline.training.validation_loop import Best, Interim, better, drawn_rows

TASKS = tuple(
    Task(name=name, labels=labels, relevant_from=1, template="{query} {ad_title}")
    for name, labels in (
        ("two", ("bad", "good")),
        ("three", ("bad", "fair", "good")),
        ("empty", ("bad", "good")),
    )
)


def valid_rows(num_rows: int = 40) -> EncodedRows:
    """Rows of the first two tasks, of unlike lengths; a row's first token is its number."""
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.full(starts[-1], 1, np.int32)
    ids[starts[:-1]] = np.arange(num_rows)
    task_N = np.arange(num_rows) % 2
    names = pa.chunked_array([[str(number) for number in range(num_rows)]])
    return EncodedRows(
        ids, starts, task_N, random.integers(0, 2, num_rows), np.ones(num_rows, np.float32), names, names
    )


class Engine:
    """Knows each row's logits by its first token."""

    def __init__(self, logits_NC: torch.Tensor) -> None:
        self.logits_NC, self.passes, self.modes = logits_NC, 0, []  # type: ignore[var-annotated]

    def __call__(
        self, ids_BS: torch.Tensor, mask_BS: torch.Tensor, task_B: torch.Tensor, packed: None
    ) -> torch.Tensor:
        assert not torch.is_grad_enabled() and self.modes[-1] == "eval"
        self.passes += 1
        return self.logits_NC[ids_BS[:, 0]]

    def eval(self) -> None:
        self.modes.append("eval")

    def train(self) -> None:
        self.modes.append("train")


def build_worker(
    engine: Any = None, rank: int = 0, world_size: int = 1, tasks: Any = TASKS, **training: Any
) -> Any:
    settings = {
        "evaluate_every_steps": None,
        "evaluate_task_rows": 500,
        "patience": None,
        "micro_batch_tokens": 32,
        **training,
    }
    config = SimpleNamespace(tasks=tasks, training=SimpleNamespace(**settings), seed=5)
    judge = SimpleNamespace(pad_id=0, device=torch.device("cpu"))
    sampler = SimpleNamespace(batches_per_epoch=10)
    watch = SimpleNamespace(alive=lambda: None)
    return SimpleNamespace(
        config=config,
        judge=judge,
        sampler=sampler,
        engine=engine,
        rank=rank,
        world_size=world_size,
        num_steps=25,
        watch=watch,
    )


def logits(num_rows: int = 40) -> torch.Tensor:
    made = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(1))
    made[::2, 2] = -torch.inf  # rows of the task with two labels
    return made


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)


def test_the_model_is_judged_after_each_epoch_and_at_the_end_or_every_so_many_steps() -> None:
    def due(**training: Any) -> list[int]:
        interim = Interim(build_worker(**training), valid_rows())
        return [step for step in range(1, 26) if interim.due(step)]

    assert due() == [10, 20, 25]
    assert due(evaluate_every_steps=7) == [7, 14, 21, 25]


def test_figures_are_those_of_scikit_learn_and_a_task_without_both_classes_has_none() -> None:
    valid, logits_NC = valid_rows(), logits()
    found = Interim(build_worker(Engine(logits_NC)), valid).evaluate(10)
    assert found["evaluated_after"] == 10 and set(found["tasks"]) == {"two", "three"}
    for index, name in enumerate(("two", "three")):
        rows = np.flatnonzero(valid.task_N == index)
        probability = torch.softmax(logits_NC[rows].double(), 1)[:, 1:].sum(1).numpy()
        relevant = valid.label_N[rows] >= 1
        assert found["tasks"][name]["rows"] == len(rows)
        assert found["tasks"][name]["pr_auc"] == pytest.approx(average_precision_score(relevant, probability))
        assert found["tasks"][name]["log_loss"] == pytest.approx(log_loss(relevant, probability))
    assert found["macro_pr_auc"] == pytest.approx(
        np.mean([figures["pr_auc"] for figures in found["tasks"].values()])
    )


def test_ranks_judge_each_row_once_between_them_in_as_many_passes_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    valid, logits_NC = valid_rows(5), logits(5)
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda tensor: parts.extend([tensor.clone()] * (tensor.ndim == 2))
    )
    engines = [Engine(logits_NC) for _ in range(4)]
    passes = []
    for rank, engine in enumerate(engines):
        interim = Interim(build_worker(engine, rank, 4, micro_batch_tokens=8), valid)
        interim._logits(lambda: False)
        passes.append(engine.passes)
        assert engine.modes == ["eval", "train"]
    assert len(set(passes)) == 1 and passes[0] == len(interim.batches) >= 1
    assert any(len(batch) < 4 for batch in interim.batches)  # so that some rank has no row of it
    rows = interim.rows_N
    assert torch.equal(sum(parts[1:], parts[0]), logits_NC[rows].double())


def test_an_evaluation_ends_before_the_next_pass_as_soon_as_it_is_asked_to() -> None:
    engine = Engine(logits())
    interim = Interim(build_worker(engine), valid_rows())
    assert len(interim.batches) > 2
    assert interim.evaluate(10, lambda: engine.passes == 2) is None and engine.passes == 2


def test_at_most_so_many_rows_of_a_task_are_drawn_and_always_the_same() -> None:
    task_N = np.asarray([0] * 50 + [1] * 3)
    rows = drawn_rows(task_N, 3, 10, seed=1)
    assert len(set(rows.tolist())) == len(rows) == 13
    assert np.bincount(task_N[rows]).tolist() == [10, 3]
    assert (rows == drawn_rows(task_N, 3, 10, seed=1)).all()
    assert (rows != drawn_rows(task_N, 3, 10, seed=2)).any()


def figures(macro_pr_auc: float, macro_log_loss: float = 0.5) -> dict[str, float]:
    return {"macro_pr_auc": macro_pr_auc, "macro_log_loss": macro_log_loss}


def test_the_best_has_the_highest_macro_pr_auc_and_among_equals_the_lowest_log_loss() -> None:
    best = Best(10, 0.8, 0.5, {})
    assert better(figures(0.1), None) and better(figures(0.81, 0.9), best) and better(figures(0.8, 0.4), best)
    assert (
        not better(figures(0.8, 0.5), best) and not better(figures(0.79, 0.1), best) and not better({}, None)
    )


def test_patience_counts_evaluations_since_the_best() -> None:
    interim = Interim(build_worker(evaluate_every_steps=4, patience=2), valid_rows())
    best = Best(8, 0.8, 0.5, {})
    assert [step for step in range(9, 25) if interim.exhausted(best, step)] == list(range(16, 25))
    assert not interim.exhausted(None, 24)
    assert not Interim(build_worker(evaluate_every_steps=4), valid_rows()).exhausted(best, 24)


def test_without_valid_rows_there_is_no_figure_and_no_best() -> None:
    interim = Interim(build_worker(Engine(logits())), rows_of_no_task())
    found = interim.evaluate(10)
    assert found == {"evaluated_after": 10, "tasks": {}} and not better(found, None)


def rows_of_no_task() -> EncodedRows:
    names = pa.chunked_array([pa.array([], pa.string())])
    return EncodedRows(
        np.zeros(0, np.int32),
        np.zeros(1, np.int64),
        *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32)),
        names,
        names,
    )


def test_logits_that_are_not_finite_end_the_training_by_name() -> None:
    spoilt = logits()
    spoilt[3, 1] = torch.nan
    with pytest.raises(TrainingDivergedError, match="valid rows of three are not finite after step 20"):
        Interim(build_worker(Engine(spoilt)), valid_rows()).evaluate(20)
