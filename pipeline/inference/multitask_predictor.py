"""Every task's logits of the same rows: all tasks in one pass where the model allows it and that is the
cheaper way, else task by task.

Shape legend: N rows, U rows that differ, B rows of a batch, S tokens, C labels of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import torch

from models.inference.task_branching import TaskBranch, all_task_logits
from pipeline.encoding.batches import length_batches, pad_rows, to_device
from pipeline.encoding.encoder import Segment
from pipeline.encoding.prefetch import OnRows
from pipeline.inference.predictor import Judge
from pipeline.inference.prefix_groups import distinct, rows_of_each
from pipeline.inference.task_predictor import FULL_ENOUGH, Spent, are_close
from pipeline.runtime.timing import DeviceClock

# Of the layers that a pass for each task goes through. Those passes have their adapters merged and read
# beginnings once, which one pass does not: they computed .70 of their tokens in the scoring bench, and
# adapters made a pass longer by .04 (README), so about .67 costs the same.
ONE_PASS_SHARE = 0.65


class AllTasksJudge:
    """Judges contract rows for each task of a judge, whose weights stay as they are from here on.

    One pass is taken where all templates give a row the same tokens, the trunk shares layers enough below the
    first one that knows tasks, and two rows tried out get the logits that a pass for each task gives them.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.spent_together, self.clock = judge, Spent(), DeviceClock(judge.device)
        plan = TaskBranch(judge.model.trunk, 1, len(judge.tasks))
        self.cost_share = plan.cost_share
        # rows that one row becomes in the upper layers
        self.streams = len(judge.tasks) if plan.branched else 1
        same_tokens = len(set(judge.encoder.segments.values())) == 1
        # None: not tried yet
        self.one_pass: bool | None = None if same_tokens and self.cost_share <= ONE_PASS_SHARE else False

    def encode(self, table: pa.Table) -> dict[str, list[np.ndarray]]:
        """Token ids of each row as each task's template has it; one list where templates are the same."""
        known: dict[tuple[Segment, ...], list[np.ndarray]] = {}
        segments = self.judge.encoder.segments
        for task in self.judge.tasks:
            if segments[task.name] not in known:
                encoded = self.judge.encode({task.name: table})
                known[segments[task.name]] = [encoded.ids_of(row) for row in range(len(encoded))]
        return {task.name: known[segments[task.name]] for task in self.judge.tasks}

    def logits(
        self, ids_by_task: Mapping[str, list[np.ndarray]], batch_tokens: int, on_rows: OnRows
    ) -> dict[str, np.ndarray]:
        """(N, C) float64 of each task by its name, of rows as `encode` has them. `batch_tokens`: of one pass,
        padding included, where it is widest. `on_rows` gets the numbers of the rows of each pass before it.
        """
        if self.one_pass is not False:
            together = self._together(next(iter(ids_by_task.values())), batch_tokens, on_rows)
            if together is not None:
                return together
        numbered = enumerate(ids_by_task.items())
        return {
            name: self.judge.of_task(index).logits(id_lists, batch_tokens, on_rows)
            for index, (name, id_lists) in numbered
        }

    def spent(self) -> Spent:
        """What judging took so far, by whatever way. A token that went through a part of the layers counts as
        that part.
        """
        parts = [self.spent_together, *(judge.spent for judge in self.judge.task_judges.values())]
        return Spent(
            **{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Spent)}
        )

    @torch.inference_mode()
    def _together(
        self, id_lists: Sequence[np.ndarray], batch_tokens: int, on_rows: OnRows
    ) -> dict[str, np.ndarray] | None:
        """The logits by one pass a batch; None where that is found to be no way."""
        self.clock.restart()
        ids_U, first_N = distinct(id_lists)
        rows_of_U = rows_of_each(first_N)
        if self.one_pass is None and len(ids_U) > 1:
            longest_2 = sorted(range(len(ids_U)), key=lambda row: len(ids_U[row]))[-2:]
            on_rows(np.concatenate([rows_of_U[row] for row in longest_2]))
            self.one_pass = self._agrees([ids_U[row] for row in longest_2])
        if not self.one_pass:
            return None
        # fetched at the end: a GPU is not waited for between passes
        judged: list[tuple[np.ndarray, list[torch.Tensor]]] = []
        for part in length_batches(
            np.array([len(ids) for ids in ids_U]), max(1, batch_tokens // self.streams), FULL_ENOUGH
        ):
            on_rows(np.concatenate([rows_of_U[row] for row in part]))
            try:
                judged.append((part, self._pass([ids_U[row] for row in part])))
            except ValueError:  # rows that cannot be told in a batch of this size
                self.one_pass = False
                return None
        order_U = np.concatenate([part for part, _ in judged])
        found: dict[str, np.ndarray] = {}
        for index, task in enumerate(self.judge.tasks):
            logits_UC = np.zeros((len(ids_U), len(task.labels)))
            logits_UC[order_U] = torch.cat([of_tasks[index] for _, of_tasks in judged]).double().cpu().numpy()
            found[task.name] = logits_UC[first_N]
        self.spent_together.model_s += self.clock.seconds()
        self.spent_together.tokens_in += len(found) * sum(map(len, id_lists))
        return found

    def _agrees(self, ids_2: list[np.ndarray]) -> bool:
        """Whether one pass gives two rows what a pass for each task gives them."""
        try:
            together = self._pass(ids_2)
        except Exception:  # whatever an architecture makes of rows that become more on their way
            return False
        ids_BS, mask_BS = (
            to_device(tensor, self.judge.device) for tensor in pad_rows(ids_2, self.judge.pad_id)
        )
        dtype = next(self.judge.model.trunk.parameters()).dtype
        for index, found_BC in enumerate(together):
            expected_BC = self.judge.model(
                ids_BS, mask_BS, torch.full((len(ids_2),), index, device=self.judge.device)
            )
            if not are_close(found_BC, expected_BC[:, : found_BC.shape[1]], dtype):
                return False
        return True

    def _pass(self, id_lists: list[np.ndarray]) -> list[torch.Tensor]:
        """Logits (B, C) of each task."""
        ids_BS, mask_BS = (
            to_device(tensor, self.judge.device) for tensor in pad_rows(id_lists, self.judge.pad_id)
        )
        with self.clock:
            found = all_task_logits(self.judge.model, ids_BS, mask_BS)
        self.spent_together.tokens_computed += round(ids_BS.numel() * len(found) * self.cost_share)
        return [found[index][:, : len(task.labels)] for index, task in enumerate(self.judge.tasks)]
