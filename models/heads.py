"""Pool token states into one vector per row; turn it into logits with one output head per task.

Shape legend: B rows, S tokens, D width, T tasks, C labels of the finest task, K labels of all tasks together.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

Pooling = Literal["last", "mean"]


def pool(hidden_BSD: torch.Tensor, mask_BS: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one vector per row (B, D), in float32 or wider.

    `last` takes the state of the last real token (decoders), `mean` the mean over real tokens (encoders).
    """
    wide = torch.promote_types(hidden_BSD.dtype, torch.float32)
    if pooling == "last":
        last_B = mask_BS.sum(dim=1) - 1
        return hidden_BSD[torch.arange(hidden_BSD.shape[0], device=hidden_BSD.device), last_B].to(wide)
    weight_BS1 = mask_BS.unsqueeze(-1).to(wide)
    return (hidden_BSD.to(wide) * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1)


def trunk_states(
    trunk: Any, input_ids_BS: torch.Tensor, mask_BS: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    """Return the last hidden states (B, S, D) of a trunk."""
    if pooling == "last":
        # causality already hides padding on the right, and attention is faster without a mask
        return trunk(input_ids=input_ids_BS, use_cache=False).last_hidden_state
    return trunk(input_ids=input_ids_BS, attention_mask=mask_BS).last_hidden_state


@torch.no_grad()
def sees_later_tokens(trunk: Any) -> bool:
    """Return whether a token's state depends on later tokens, as in a decoder with bidirectional attention.

    It is measured, because each family of configs has another setting for it.
    """
    embedding = trunk.get_input_embeddings().weight
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7]], device=embedding.device) % len(embedding)
    first_BD = trunk(input_ids=ids_BS, use_cache=False).last_hidden_state[:, 0].float()
    # in mixtures of experts, rounding may depend on the other tokens of an expert
    rounding = 0.02 if embedding.dtype == torch.bfloat16 else 1e-3
    return bool((first_BD[0] - first_BD[1]).norm() > rounding * first_BD[0].norm())


class TaskHeads(nn.Module):
    """Output heads of all tasks, computed as one dense product; a row keeps the logits of its own task.

    Logits beyond a task's labels are -inf, so that a softmax over C is a softmax over the task's labels.
    """

    index_TC: torch.Tensor
    absent_TC: torch.Tensor

    def __init__(self, width: int, num_labels_T: Sequence[int]) -> None:
        super().__init__()
        self.num_labels_T = tuple(num_labels_T)
        self.weight_KD = nn.Parameter(torch.zeros(sum(num_labels_T), width))
        self.bias_K = nn.Parameter(torch.zeros(sum(num_labels_T)))
        label_C = torch.arange(max(num_labels_T))
        count_T1 = torch.tensor(self.num_labels_T).unsqueeze(1)
        start_T1 = count_T1.cumsum(0) - count_T1
        self.register_buffer("index_TC", start_T1 + label_C.minimum(count_T1 - 1), persistent=False)
        self.register_buffer("absent_TC", label_C >= count_T1, persistent=False)

    def forward(self, pooled_BD: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of each row's task."""
        all_BK = functional.linear(pooled_BD, self.weight_KD, self.bias_K)
        return all_BK.gather(1, self.index_TC[task_B]).masked_fill(self.absent_TC[task_B], float("-inf"))

    def label_slice(self, task_index: int) -> slice:
        """Return the slice of a task's labels among the K labels."""
        start = sum(self.num_labels_T[:task_index])
        return slice(start, start + self.num_labels_T[task_index])

    @torch.no_grad()
    def init_from_direction(self, direction_D: torch.Tensor, scale: float) -> None:
        """Set each label's weights to a multiple of one direction, from -scale/2 (worst) to +scale/2 (best).

        With the direction from the language model's "no" to its "yes", training starts from the model's own
        notion of relevance.
        """
        position_K = torch.cat([torch.linspace(-0.5, 0.5, count) for count in self.num_labels_T])
        self.weight_KD.copy_(scale * position_K[:, None] * direction_D.float()[None, :])

    @torch.no_grad()
    def init_biases_from_label_shares(
        self, pooled_BD: torch.Tensor, task_B: torch.Tensor, share_TC: torch.Tensor
    ) -> None:
        """Set the biases so that each task's mean logits over these rows are the logs of its label shares.

        A language model leans to yes or to no; without this the first training steps only remove that bias.
        Tasks without a row keep their biases.

        Args:
            pooled_BD: Pooled rows.
            task_B: Their task ids.
            share_TC: Label frequencies of each task, all above 0.
        """
        logits_BK = functional.linear(pooled_BD, self.weight_KD)
        for task in task_B.unique().tolist():
            count = self.num_labels_T[task]
            index_C = self.index_TC[task, :count]
            mean_C = logits_BK[task_B == task][:, index_C].mean(dim=0)
            self.bias_K[index_C] = share_TC[task, :count].to(mean_C).log() - mean_C
