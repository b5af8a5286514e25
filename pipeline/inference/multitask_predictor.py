"""Logits of every task for the same rows, in one pass for all tasks where that works and costs less.

Shape legend: N rows, U distinct rows, B rows of a batch, S tokens, C labels of a task.
"""

import functools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.inference.task_branching import TaskBranch, all_task_logits
from pipeline.encoding.batches import length_batches, pad_rows, to_device
from pipeline.encoding.encoder import Segment
from pipeline.inference.predictor import Predictor
from pipeline.inference.prefix_groups import find_distinct, rows_by_distinct
from pipeline.inference.step_plan import Step, planned
from pipeline.inference.task_predictor import MIN_FILL, TokenUsage, logits_are_close
from pipeline.runtime.timing import DeviceClock

# One pass for all tasks is used if its work is at most this share of the work of a pass per task. The costs
# are equal at 0.67: a pass per task encodes prefixes once and so computes 0.70 of its tokens, and unmerged
# adapters make one pass 4 % longer (tests/bench/bench_score.py).
ONE_PASS_SHARE = 0.65


class MultitaskPredictor:
    """Predictor of all tasks of a model. The weights must not change after construction.

    One pass serves all tasks if all templates give a row the same tokens, enough layers lie below the first
    task-dependent one, and two rows get the logits of a pass per task.

    Attributes:
        one_pass: True if one pass serves all tasks; None until two rows are tried.
        cost_share: Work of one pass, as a share of the work of a pass per task.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.clock = predictor, DeviceClock(predictor.device)
        self._one_pass_usage = TokenUsage()
        branch = TaskBranch(predictor.model.trunk, 1, len(predictor.tasks))
        self.cost_share = branch.cost_share
        # rows of the upper layers for each row of a batch
        self.streams = len(predictor.tasks) if branch.is_branched else 1
        has_equal_templates = len(set(predictor.encoder.segments.values())) == 1
        is_worthwhile = has_equal_templates and self.cost_share <= ONE_PASS_SHARE
        self.one_pass: bool | None = None if is_worthwhile else False

    def encode(self, table: pa.Table) -> dict[str, list[np.ndarray]]:
        """Return the token ids of each row by task; tasks with equal templates share one list."""
        by_template: dict[tuple[Segment, ...], list[np.ndarray]] = {}
        segments = self.predictor.encoder.segments
        for task in self.predictor.tasks:
            if segments[task.name] not in by_template:
                encoded = self.predictor.encode({task.name: table})
                by_template[segments[task.name]] = [encoded.ids_of(row) for row in range(len(encoded))]
        return {task.name: by_template[segments[task.name]] for task in self.predictor.tasks}

    @planned
    def plan_logits(
        self, ids_by_task: Mapping[str, list[np.ndarray]], batch_tokens: int
    ) -> Generator[Step[Any], None, dict[str, np.ndarray]]:
        """Plan the logits of rows for every task.

        Args:
            ids_by_task: Token ids of each row by task, from `encode`.
            batch_tokens: Largest number of tokens in any layer of a forward pass, padding included.

        Returns:
            A plan of one step per forward pass. Its result is (N, C) float64 by task.
        """
        if self.one_pass is not False:
            together = yield from self._plan_one_pass(next(iter(ids_by_task.values())), batch_tokens)
            if together is not None:
                return together
        logits: dict[str, np.ndarray] = {}
        for index, (name, id_lists) in enumerate(ids_by_task.items()):
            logits[name] = yield from self.predictor.task_predictor(index).plan_logits(id_lists, batch_tokens)
        return logits

    def usage(self) -> TokenUsage:
        """Return the work done so far. A token that passed 60 % of the layers counts as 0.6 tokens."""
        parts = [self._one_pass_usage, *(task.usage for task in self.predictor.task_predictors.values())]
        return TokenUsage(
            **{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(TokenUsage)}
        )

    def _plan_one_pass(
        self, id_lists: Sequence[np.ndarray], batch_tokens: int
    ) -> Generator[Step[Any], None, dict[str, np.ndarray] | None]:
        """Yield one step per batch; return None and clear `one_pass` where this model does not allow it."""
        self.clock.restart()
        ids_U, distinct_N = find_distinct(id_lists)
        rows_of_U = rows_by_distinct(distinct_N)
        if self.one_pass is None and len(ids_U) > 1:
            longest_2 = sorted(range(len(ids_U)), key=lambda row: len(ids_U[row]))[-2:]
            rows = np.concatenate([rows_of_U[row] for row in longest_2])
            trial = Step(rows, lambda: self._one_pass_agrees([ids_U[row] for row in longest_2]))
            yield trial
            self.one_pass = trial.result
        if not self.one_pass:
            return None

        length_U = np.array([len(ids) for ids in ids_U])
        batches = length_batches(length_U, max(1, batch_tokens // self.streams), MIN_FILL)
        logits: list[list[torch.Tensor]] = []
        for batch in batches:
            step = Step(
                np.concatenate([rows_of_U[row] for row in batch]),
                functools.partial(self._try_pass, [ids_U[row] for row in batch]),
            )
            yield step
            if step.result is None:
                self.one_pass = False
                return None
            logits.append(step.result)

        order_U = np.concatenate(batches)
        by_task: dict[str, np.ndarray] = {}
        for index, task in enumerate(self.predictor.tasks):
            logits_UC = np.zeros((len(ids_U), len(task.labels)))
            # copied at the end, so that no pass waits for the GPU to finish the one before
            logits_UC[order_U] = torch.cat([batch[index] for batch in logits]).double().cpu().numpy()
            by_task[task.name] = logits_UC[distinct_N]
        self._one_pass_usage.model_s += self.clock.seconds()
        self._one_pass_usage.tokens_in += len(by_task) * sum(map(len, id_lists))
        return by_task

    @torch.inference_mode()
    def _one_pass_agrees(self, ids_2: list[np.ndarray]) -> bool:
        """Return whether one pass gives two rows the logits of a pass per task."""
        try:
            together = self._forward(ids_2)
        except Exception:  # any error of an architecture that does not support branching
            return False
        ids_BS, mask_BS = self._pad(ids_2)
        dtype = next(self.predictor.model.trunk.parameters()).dtype
        for index, actual_BC in enumerate(together):
            task_B = torch.full((len(ids_2),), index, device=self.predictor.device)
            expected_BC = self.predictor.model(ids_BS, mask_BS, task_B)
            if not logits_are_close(actual_BC, expected_BC[:, : actual_BC.shape[1]], dtype):
                return False
        return True

    def _try_pass(self, id_lists: list[np.ndarray]) -> list[torch.Tensor] | None:
        """Return the logits (B, C) of each task; None if a layer refuses a batch of this size."""
        try:
            return self._forward(id_lists)
        except ValueError:
            return None

    @torch.inference_mode()
    def _forward(self, id_lists: list[np.ndarray]) -> list[torch.Tensor]:
        """Return the logits (B, C) of each task."""
        ids_BS, mask_BS = self._pad(id_lists)
        with self.clock:
            logits = all_task_logits(self.predictor.model, ids_BS, mask_BS)
        self._one_pass_usage.tokens_computed += round(ids_BS.numel() * len(logits) * self.cost_share)
        return [logits[index][:, : len(task.labels)] for index, task in enumerate(self.predictor.tasks)]

    def _pad(self, id_lists: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BS, mask_BS = pad_rows(id_lists, self.predictor.pad_id)
        return to_device(ids_BS, self.predictor.device), to_device(mask_BS, self.predictor.device)
