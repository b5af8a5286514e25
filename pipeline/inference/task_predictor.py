"""Logits of one task at the least cost: merged adapters, equal rows once, shared prefixes once.

Shape legend: N rows, U distinct rows, B rows of a batch, S tokens, G prefixes, P tokens of a prefix, C labels
of the task.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.adapters.adapted_linear import NotMergeableError
from models.inference.merging import MergedModel, merge_task
from models.inference.prefix_cache import PrefixStates, encode_prefixes, forward_with_prefix
from models.relevance import RelevanceModel
from pipeline.encoding.batches import length_batches, pad_rows, to_device
from pipeline.inference.prefix_groups import PrefixGroup, find_distinct, group_by_prefix, rows_by_distinct
from pipeline.inference.step_plan import Step, planned
from pipeline.runtime.timing import DeviceClock

MIN_FILL = 0.125  # share of the token budget; smaller passes cost more per token than padding does

# A token of a cached prefix costs memory and little time: this many count as one token of the budget.
PREFIX_TOKENS_PER_TOKEN = 4

# Relative distance. bfloat16 differs by some hundredths with the order of sums; a model that ignores its
# prefix differs by about 1.
LOGIT_TOLERANCE = 0.1


@dataclass
class TokenUsage:
    """Work done by a predictor. Counts add up over calls."""

    tokens_in: int = 0  # of all rows
    tokens_computed: int = 0  # through the model, padding included
    model_s: float = 0.0

    @property
    def computed_share(self) -> float:
        """Computed tokens per input token."""
        return self.tokens_computed / max(1, self.tokens_in)


class TaskPredictor:
    """Predictor of one task of a model. The weights must not change after construction.

    Attributes:
        merged: The model with the task's adapters merged; None if the adapter method cannot be merged.
        shares_prefixes: True if a prefix may be encoded once for many rows; None until two rows are tried.
        usage: Work done so far.
    """

    def __init__(self, model: RelevanceModel, task_index: int, pad_id: int, device: torch.device) -> None:
        self.model, self.task_index, self.pad_id, self.device = model, task_index, pad_id, device
        self.num_labels = model.heads.num_labels_T[task_index]
        self.usage, self.clock = TokenUsage(), DeviceClock(device)
        try:
            self.merged: MergedModel | None = merge_task(model, task_index)
        except NotMergeableError:  # the method has no weight of a single task
            self.merged = None
        can_share = self.merged is not None and model.pooling == "last"
        self.shares_prefixes: bool | None = None if can_share else False

    @planned
    def plan_logits(
        self, id_lists: Sequence[np.ndarray], batch_tokens: int
    ) -> Generator[Step[Any], None, np.ndarray]:
        """Plan the logits of rows of token ids. They do not depend on how rows are batched.

        Args:
            id_lists: Token ids of each row.
            batch_tokens: Largest number of tokens of a forward pass, padding included.

        Returns:
            A plan of one step per forward pass, each row in one step. Its result is (N, C) float64.
        """
        self.clock.restart()  # an earlier call may have ended in an error
        self.usage.tokens_in += sum(map(len, id_lists))
        ids_U, distinct_N = find_distinct(id_lists)
        rows_of_U = rows_by_distinct(distinct_N)
        distinct_rows: list[np.ndarray] = []
        logits: list[torch.Tensor] = []
        for step in self._plan_passes(ids_U, batch_tokens):
            yield Step(np.concatenate([rows_of_U[row] for row in step.rows]), step.run)
            distinct_rows.append(step.rows)
            logits.append(step.result)
        logits_UC = np.zeros((len(ids_U), self.num_labels))
        if logits:
            # copied at the end, so that no pass waits for the GPU to finish the one before
            logits_UC[np.concatenate(distinct_rows)] = torch.cat(logits).double().cpu().numpy()
        self.usage.model_s += self.clock.seconds()
        return logits_UC[distinct_N]

    def _plan_passes(self, ids_U: list[np.ndarray], batch_tokens: int) -> Iterator[Step[torch.Tensor]]:
        """Yield the forward passes; the rows of a step are numbers of distinct rows."""
        if self._can_share_prefixes(ids_U):
            yield from self._plan_prefix_passes(ids_U, batch_tokens)
            return
        length_U = np.array([len(ids) for ids in ids_U])
        for rows in length_batches(length_U, batch_tokens, MIN_FILL):
            yield self._whole_step(rows, [ids_U[row] for row in rows])

    def _plan_prefix_passes(self, ids_U: list[np.ndarray], batch_tokens: int) -> Iterator[Step[torch.Tensor]]:
        """Yield the passes of rows without a group, then those of each group behind the group's prefix."""
        common, groups = group_by_prefix(ids_U)
        # Encoded by the first step that needs it, so that the caller has recorded the step's rows by then.
        root: Callable[[], PrefixStates] | None = None
        if common:
            root = functools.cache(lambda: self._encode_prefixes([ids_U[0][:common]], None))
        ungrouped = [row for group in groups if len(group.rows) == 1 for row in group.rows]
        cost = np.array([len(ids_U[row]) - common + common // PREFIX_TOKENS_PER_TOKEN for row in ungrouped])
        for batch in length_batches(cost, batch_tokens, MIN_FILL) if ungrouped else []:
            rows = np.array([ungrouped[position] for position in batch])
            tails = [ids_U[row][common:] for row in rows]
            if root is None:
                yield self._whole_step(rows, tails)
            else:
                yield self._tails_step(rows, tails, root, [0] * len(rows))

        shared_groups = [group for group in groups if len(group.rows) > 1]
        prefix_length = np.array([group.prefix_length - common for group in shared_groups])
        for batch in length_batches(prefix_length, batch_tokens, MIN_FILL) if shared_groups else []:
            batch_groups = [shared_groups[position] for position in batch]
            yield from self._plan_groups(ids_U, batch_groups, root, common, batch_tokens)

    def _plan_groups(
        self,
        ids_U: list[np.ndarray],
        groups: list[PrefixGroup],
        root: Callable[[], PrefixStates] | None,
        common: int,
        batch_tokens: int,
    ) -> Iterator[Step[torch.Tensor]]:
        """Yield the passes of groups whose prefixes are encoded together, behind the `root` prefix."""
        heads = [ids_U[group.rows[0]][common : group.prefix_length] for group in groups]
        prefixes = functools.cache(lambda: self._encode_prefixes(heads, root() if root else None))
        rows = np.array([row for group in groups for row in group.rows])
        prefix_number = [number for number, group in enumerate(groups) for _ in group.rows]
        tails = [
            ids_U[row][groups[number].prefix_length :]
            for row, number in zip(rows, prefix_number, strict=True)
        ]
        longest_prefix = max(group.prefix_length for group in groups)
        cost = np.array([len(tail) + longest_prefix // PREFIX_TOKENS_PER_TOKEN for tail in tails])
        for batch in length_batches(cost, batch_tokens, MIN_FILL):
            numbers = [prefix_number[position] for position in batch]
            yield self._tails_step(rows[batch], [tails[position] for position in batch], prefixes, numbers)

    def _whole_step(self, rows: np.ndarray, id_lists: list[np.ndarray]) -> Step[torch.Tensor]:
        return Step(rows, lambda: self._forward(id_lists))

    def _tails_step(
        self,
        rows: np.ndarray,
        tails: list[np.ndarray],
        prefixes: Callable[[], PrefixStates],
        numbers: list[int],
    ) -> Step[torch.Tensor]:
        return Step(rows, lambda: self._forward_tails(tails, prefixes(), numbers))

    def _can_share_prefixes(self, ids_U: list[np.ndarray]) -> bool:
        """Return whether prefixes can be shared by these rows; tries two of them on first use."""
        longest_2 = sorted(ids_U, key=len)[-2:]
        if self.shares_prefixes is None and len(longest_2) == 2 and len(longest_2[0]) > 1:
            self.shares_prefixes = self._prefix_logits_agree(longest_2)
        if not self.shares_prefixes or len(ids_U) < 2:
            return False
        return 2 * len(longest_2[-1]) <= attention_window(self.model.trunk)

    def _prefix_logits_agree(self, ids_2: list[np.ndarray]) -> bool:
        """Return whether two rows get the same logits when each is encoded in two parts.

        Some architectures have no cache of past tokens, or take no positions.
        """
        trunk: Any = self.model.trunk
        # without explicit positions the trunk would count the padding between the parts
        if "position_ids" not in inspect.signature(trunk.forward).parameters:
            return False
        # unequal lengths, so that there is padding to skip
        cuts = [max(1, len(ids) // share) for ids, share in zip(ids_2, (2, 3), strict=True)]
        heads = [ids[:cut] for ids, cut in zip(ids_2, cuts, strict=True)]
        tails = [ids[cut:] for ids, cut in zip(ids_2, cuts, strict=True)]
        try:
            in_parts = self._forward_tails(tails, self._encode_prefixes(heads, None), [0, 1])
        except Exception:  # any error of an architecture that does not support this cache
            return False
        return logits_are_close(in_parts, self._forward(ids_2), next(trunk.parameters()).dtype)

    @torch.inference_mode()
    def _forward(self, id_lists: Sequence[np.ndarray]) -> torch.Tensor:
        ids_BS, mask_BS = self._pad(id_lists)
        with self.clock:
            if self.merged is not None:
                return self.merged(ids_BS, mask_BS)
            task_B = torch.full((len(id_lists),), self.task_index, device=self.device)
            return self.model(ids_BS, mask_BS, task_B)[:, : self.num_labels]

    @torch.inference_mode()
    def _forward_tails(
        self, tails: Sequence[np.ndarray], prefixes: PrefixStates, numbers: Sequence[int]
    ) -> torch.Tensor:
        assert self.merged is not None
        ids_BS, mask_BS = self._pad(tails)
        number_B = to_device(torch.tensor(numbers), self.device)
        with self.clock:
            return forward_with_prefix(self.merged, ids_BS, mask_BS, prefixes, number_B)

    @torch.inference_mode()
    def _encode_prefixes(self, heads: Sequence[np.ndarray], root: PrefixStates | None) -> PrefixStates:
        assert self.merged is not None
        ids_GP, mask_GP = self._pad(heads)
        is_padded = len(set(map(len, heads))) > 1
        with self.clock:
            return encode_prefixes(self.merged, ids_GP, mask_GP, is_padded, root)

    def _pad(self, id_lists: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padded ids and their mask on the device, and count their tokens."""
        ids_BS, mask_BS = pad_rows(id_lists, self.pad_id)
        self.usage.tokens_computed += ids_BS.numel()
        return to_device(ids_BS, self.device), to_device(mask_BS, self.device)


def attention_window(trunk: Any) -> float:
    """Return the least number of tokens that a layer attends to; infinity without a limit.

    The model's cache drops tokens beyond it, padding included.
    """
    config = trunk.config.get_text_config(decoder=True)
    return min(
        getattr(config, name, None) or float("inf") for name in ("sliding_window", "attention_chunk_size")
    )


def logits_are_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether two ways of computing gave the same logits, up to the rounding of `dtype`."""
    tolerance = LOGIT_TOLERANCE if dtype == torch.bfloat16 else LOGIT_TOLERANCE / 100
    return bool((actual.float() - expected.float()).norm() <= tolerance * expected.float().norm())
