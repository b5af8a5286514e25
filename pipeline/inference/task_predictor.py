"""Rows of one task through the model at the least cost: adapters merged into the weights, equal rows once,
equal beginnings once.

Shape legend: N rows, U rows that differ, B rows of a batch, S tokens, C labels of the task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.adapters.adapted_linear import NotMergeableError
from models.inference.merging import MergedModel, merge_task
from models.inference.prefix_cache import Prefixes, judge_behind, read_prefixes
from models.relevance import RelevanceModel
from pipeline.encoding.batches import length_batches, pad_rows, to_device
from pipeline.encoding.prefetch import OnRows
from pipeline.inference.prefix_groups import Group, distinct, find_groups, rows_of_each
from pipeline.runtime.timing import DeviceClock

FULL_ENOUGH = 0.125  # of the token budget; smaller passes cost more a token than padding does

# token budgets that a batch's rows may take with the beginnings they lie behind, which cost memory and little
# time
ROOM_BEHIND = 4

# of their length; bfloat16 differs by some hundredths with the order of sums, a model that lost what it read
# by about 1
CLOSE_LOGITS = 0.1

OnMembers = Callable[[Sequence[int]], None]  # as OnRows, with numbers among the rows that differ


@dataclass
class Spent:
    """What judging took. Counts add up over calls."""

    tokens_in: int = 0  # of all rows
    tokens_computed: int = 0  # that went through the model, padding included
    model_s: float = 0.0

    @property
    def computed_share(self) -> float:
        """Tokens computed over tokens in."""
        return self.tokens_computed / max(1, self.tokens_in)


class TaskJudge:
    """One task of a model whose weights stay as they are from here on."""

    def __init__(self, model: RelevanceModel, task_index: int, pad_id: int, device: torch.device) -> None:
        self.model, self.task_index, self.pad_id, self.device = model, task_index, pad_id, device
        self.num_labels = model.heads.num_labels_T[task_index]
        self.spent, self.clock = Spent(), DeviceClock(device)
        try:
            self.merged: MergedModel | None = merge_task(model, task_index)
        except NotMergeableError:  # the method has no weight for a task
            self.merged = None
        # None: not tried yet
        self.shares_beginnings: bool | None = (
            None if self.merged is not None and model.pooling == "last" else False
        )

    @torch.inference_mode()
    def logits(self, id_lists: Sequence[np.ndarray], batch_tokens: int, on_rows: OnRows) -> np.ndarray:
        """(N, C) float64 of rows of token ids, whatever the batches they come in. `batch_tokens`: of one
        pass, padding included.
        """
        self.clock.restart()  # a call before may have ended in an error
        self.spent.tokens_in += sum(map(len, id_lists))
        ids_U, first_N = distinct(id_lists)
        rows_of_U = rows_of_each(first_N)

        def tell(rows: Sequence[int]) -> None:
            on_rows(np.concatenate([rows_of_U[u] for u in rows]))

        # and fetched at the end: a GPU is not waited for between passes
        judged = list(self._judged(ids_U, batch_tokens, tell))
        logits_UC = np.zeros((len(ids_U), self.num_labels))
        if judged:
            rows, of_rows = zip(*judged, strict=True)
            logits_UC[np.concatenate(rows)] = torch.cat(of_rows).double().cpu().numpy()
        self.spent.model_s += self.clock.seconds()
        return logits_UC[first_N]

    def _judged(
        self, ids_U: list[np.ndarray], batch_tokens: int, tell: OnMembers
    ) -> Iterator[tuple[Any, torch.Tensor]]:
        """(row numbers, their logits), batch by batch."""
        longest_2 = sorted(ids_U, key=len)[-2:]
        if self.shares_beginnings is None and len(longest_2) == 2 and len(longest_2[0]) > 1:
            self.shares_beginnings = self._reads_in_parts(longest_2)
        if (
            not self.shares_beginnings
            or len(ids_U) < 2
            or 2 * len(longest_2[-1]) > attention_window(self.model.trunk)
        ):
            for part in length_batches(np.array([len(ids) for ids in ids_U]), batch_tokens, FULL_ENOUGH):
                tell(part.tolist())
                yield part, self._whole([ids_U[row] for row in part])
            return
        common, groups = find_groups(ids_U)
        alone = [row for group in groups if len(group.rows) == 1 for row in group.rows]
        start = self._read([ids_U[0][:common]], None) if common else None
        room = np.array([len(ids_U[row]) - common + common // ROOM_BEHIND for row in alone])
        for part in length_batches(room, batch_tokens, FULL_ENOUGH) if alone else []:
            rows = [alone[position] for position in part]
            tell(rows)
            tails = [ids_U[row][common:] for row in rows]
            yield rows, self._whole(tails) if start is None else self._behind(tails, start, [0] * len(rows))
        together = [group for group in groups if len(group.rows) > 1]
        for batch in self._group_batches(together, common, batch_tokens):
            yield from self._judge_groups(ids_U, batch, start, common, batch_tokens, tell)

    def _group_batches(self, groups: list[Group], common: int, batch_tokens: int) -> Iterator[list[Group]]:
        lengths = np.array([group.shared - common for group in groups])
        for part in length_batches(lengths, batch_tokens, FULL_ENOUGH) if groups else []:
            yield [groups[position] for position in part]

    def _judge_groups(
        self,
        ids_U: list[np.ndarray],
        groups: list[Group],
        start: Prefixes | None,
        common: int,
        batch_tokens: int,
        tell: OnMembers,
    ) -> Iterator[tuple[Any, torch.Tensor]]:
        """Read the groups' beginnings, then what follows them."""
        members = [(row, number) for number, group in enumerate(groups) for row in group.rows]
        beginnings = self._read([ids_U[group.rows[0]][common : group.shared] for group in groups], start)
        longest = max(group.shared for group in groups)
        tails = [ids_U[row][groups[number].shared :] for row, number in members]
        room = np.array([len(tail) + longest // ROOM_BEHIND for tail in tails])
        for part in length_batches(room, batch_tokens, FULL_ENOUGH):
            rows = [members[i][0] for i in part]
            tell(rows)
            yield rows, self._behind([tails[i] for i in part], beginnings, [members[i][1] for i in part])

    def _reads_in_parts(self, ids_2: list[np.ndarray]) -> bool:
        """Whether two rows get the same logits when each is read in two parts: not every architecture keeps
        what it has read, or takes positions.
        """
        trunk: Any = self.model.trunk
        # it would count the padding between the parts
        if "position_ids" not in inspect.signature(trunk.forward).parameters:
            return False
        # unlike lengths, so that there is padding to look past
        cuts = [max(1, len(ids) // share) for ids, share in zip(ids_2, (2, 3), strict=True)]
        try:
            heads = self._read([ids[:cut] for ids, cut in zip(ids_2, cuts, strict=True)], None)
            parted = self._behind([ids[cut:] for ids, cut in zip(ids_2, cuts, strict=True)], heads, [0, 1])
        except Exception:  # whatever an architecture makes of a cache that it was not made for
            return False
        whole = self._whole(ids_2)
        return are_close(parted, whole, next(trunk.parameters()).dtype)

    def _whole(self, id_lists: Sequence[np.ndarray]) -> torch.Tensor:
        ids_BS, mask_BS = self._padded(id_lists)
        with self.clock:
            if self.merged is not None:
                return self.merged(ids_BS, mask_BS)
            task_B = torch.full((len(id_lists),), self.task_index, device=self.device)
            return self.model(ids_BS, mask_BS, task_B)[:, : self.num_labels]

    def _behind(
        self, tails: Sequence[np.ndarray], prefixes: Prefixes, numbers: Sequence[int]
    ) -> torch.Tensor:
        assert self.merged is not None
        ids_BS, mask_BS = self._padded(tails)
        number_B = to_device(torch.tensor(numbers), self.device)
        with self.clock:
            return judge_behind(self.merged, ids_BS, mask_BS, prefixes, number_B)

    def _read(self, beginnings: Sequence[np.ndarray], behind: Prefixes | None) -> Prefixes:
        assert self.merged is not None
        ids_GP, mask_GP = self._padded(beginnings)
        padded = len(set(map(len, beginnings))) > 1
        with self.clock:
            return read_prefixes(self.merged, ids_GP, mask_GP, padded, behind)

    def _padded(self, id_lists: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """On the device, and counted."""
        ids_BS, mask_BS = pad_rows(id_lists, self.pad_id)
        self.spent.tokens_computed += ids_BS.numel()
        return to_device(ids_BS, self.device), to_device(mask_BS, self.device)


def attention_window(trunk: Any) -> float:
    """Tokens that the model's layers look back at least, and so keep; its cache would drop what is padded
    beyond them.
    """
    config = trunk.config.get_text_config(decoder=True)
    return min(
        getattr(config, name, None) or float("inf") for name in ("sliding_window", "attention_chunk_size")
    )


def are_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether these are the same logits, made in another way by a model of that dtype."""
    close = CLOSE_LOGITS if dtype == torch.bfloat16 else CLOSE_LOGITS / 100
    return bool((found.float() - expected.float()).norm() <= close * expected.float().norm())
