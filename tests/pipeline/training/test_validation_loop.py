"""Tests of evaluation during training: rows, schedule, metrics, best weights, patience."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss

from pipeline.config.tasks import Task
from pipeline.encoding.batches import EncodedRows
from pipeline.training.event_log import BestEvaluation
from pipeline.training.step import TrainingDivergedError
from pipeline.training.validation_loop import BestWeights, ValidationLoop, ValidationMetrics, draw_rows
from tests.support.encoded_lists import encoded_lists

TASKS = tuple(
    Task(name=name, labels=labels, relevant_from=1, template="{query} {ad_title}")
    for name, labels in (
        ("two", ("bad", "good")),
        ("three", ("bad", "fair", "good")),
        ("empty", ("bad", "good")),
    )
)


NO_STOP: Any = SimpleNamespace(is_requested=lambda: False)


def valid_rows(num_rows: int = 40) -> EncodedRows:
    """Return rows of the first two tasks; the first token of a row is its number."""
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, num_rows)
    lists = [[number, *[1] * (length - 1)] for number, length in enumerate(lengths)]
    task_N = [number % 2 for number in range(num_rows)]
    return encoded_lists(lists, task_N, random.integers(0, 2, num_rows).tolist())


class Engine:
    """Engine that returns a row's logits by its first token."""

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
    predictor = SimpleNamespace(pad_id=0, device=torch.device("cpu"))
    sampler = SimpleNamespace(batches_per_epoch=10)
    watchdog = SimpleNamespace(heartbeat=lambda: None)
    return SimpleNamespace(
        config=config,
        predictor=predictor,
        sampler=sampler,
        engine=engine,
        rank=rank,
        world_size=world_size,
        num_steps=25,
        watchdog=watchdog,
    )


def make_logits(num_rows: int = 40) -> torch.Tensor:
    logits_NC = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(1))
    logits_NC[::2, 2] = -torch.inf  # rows of the task with two labels
    return logits_NC


@pytest.fixture(autouse=True)
def single_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)


def test_evaluation_is_due_each_epoch_or_every_n_steps() -> None:
    def due_steps(**training: Any) -> list[int]:
        validation = ValidationLoop(build_worker(**training), valid_rows())
        return [step for step in range(1, 26) if validation.is_due(step)]

    assert due_steps() == [10, 20, 25]
    assert due_steps(evaluate_every_steps=7) == [7, 14, 21, 25]


def test_metrics_equal_scikit_learn_and_need_both_classes() -> None:
    valid, logits_NC = valid_rows(), make_logits()
    found = ValidationLoop(build_worker(Engine(logits_NC)), valid).evaluate(10, NO_STOP)
    assert found is not None and found.step == 10 and set(found.tasks) == {"two", "three"}
    for index, name in enumerate(("two", "three")):
        rows = np.flatnonzero(valid.task_N == index)
        probability = torch.softmax(logits_NC[rows].double(), 1)[:, 1:].sum(1).numpy()
        relevant = valid.labels_of(rows) >= 1
        assert found.tasks[name]["rows"] == len(rows)
        assert found.tasks[name]["pr_auc"] == pytest.approx(average_precision_score(relevant, probability))
        assert found.tasks[name]["log_loss"] == pytest.approx(log_loss(relevant, probability))
    assert found.macro_pr_auc == pytest.approx(
        np.mean([metrics["pr_auc"] for metrics in found.tasks.values()])
    )


def test_ranks_divide_rows_and_run_equal_numbers_of_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    valid, logits_NC = valid_rows(5), make_logits(5)
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda tensor: parts.extend([tensor.clone()] * (tensor.ndim == 2))
    )
    engines = [Engine(logits_NC) for _ in range(4)]
    passes = []
    for rank, engine in enumerate(engines):
        validation = ValidationLoop(build_worker(engine, rank, 4, micro_batch_tokens=8), valid)
        validation._logits(NO_STOP)
        passes.append(engine.passes)
        assert engine.modes == ["eval", "train"]
    assert len(set(passes)) == 1 and passes[0] == len(validation.batches) >= 1
    assert any(len(batch) < 4 for batch in validation.batches)  # some rank has no row
    rows = validation.rows_N
    assert torch.equal(sum(parts[1:], parts[0]), logits_NC[rows].double())


def test_stop_request_ends_evaluation_before_the_next_pass() -> None:
    engine = Engine(make_logits())
    validation = ValidationLoop(build_worker(engine), valid_rows())
    assert len(validation.batches) > 2
    stop: Any = SimpleNamespace(is_requested=lambda: engine.passes == 2)
    assert validation.evaluate(10, stop) is None and engine.passes == 2


def test_drawn_rows_are_bounded_and_reproducible() -> None:
    task_N = np.asarray([0] * 50 + [1] * 3)
    rows = draw_rows(task_N, 3, 10, seed=1)
    assert len(set(rows.tolist())) == len(rows) == 13
    assert np.bincount(task_N[rows]).tolist() == [10, 3]
    assert (rows == draw_rows(task_N, 3, 10, seed=1)).all()
    assert (rows != draw_rows(task_N, 3, 10, seed=2)).any()


def make_metrics(macro_pr_auc: float | None, macro_log_loss: float | None = 0.5) -> ValidationMetrics:
    return ValidationMetrics(10, {}, macro_pr_auc, macro_log_loss)


def test_best_has_highest_pr_auc_then_lowest_log_loss() -> None:
    best = BestEvaluation(10, 0.8, 0.5)
    assert make_metrics(0.1).is_better_than(None)
    assert make_metrics(0.81, 0.9).is_better_than(best)
    assert make_metrics(0.8, 0.4).is_better_than(best)
    assert not make_metrics(0.8, 0.5).is_better_than(best)
    assert not make_metrics(0.79, 0.1).is_better_than(best)
    assert not make_metrics(None, None).is_better_than(None)


def test_patience_counts_evaluations_since_the_best() -> None:
    validation = ValidationLoop(build_worker(evaluate_every_steps=4, patience=2), valid_rows())
    best = BestWeights(BestEvaluation(8, 0.8, 0.5), {})
    assert [step for step in range(9, 25) if validation.is_patience_exhausted(best, step)] == list(
        range(16, 25)
    )
    assert not validation.is_patience_exhausted(None, 24)
    assert not ValidationLoop(build_worker(evaluate_every_steps=4), valid_rows()).is_patience_exhausted(
        best, 24
    )


def test_no_valid_rows_give_no_metrics() -> None:
    validation = ValidationLoop(build_worker(Engine(make_logits())), encoded_lists([]))
    found = validation.evaluate(10, NO_STOP)
    assert found == ValidationMetrics(10, {}, None, None)


def test_infinite_logits_raise_an_error_naming_the_task() -> None:
    broken = make_logits()
    broken[3, 1] = torch.nan
    with pytest.raises(TrainingDivergedError, match="valid rows of three are not finite after step 20"):
        ValidationLoop(build_worker(Engine(broken)), valid_rows()).evaluate(20, NO_STOP)
