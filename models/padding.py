"""Check that padding does not change a row's result, so that rows do not depend on their batch.

Shape legend: B rows, S tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models.folder_checks import BackboneUnavailableError
from models.relevance import RelevanceModel

# Largest relative change of a row's pooled state that counts as rounding. In bfloat16 another order of sums
# changes it by some hundredths; padding that is attended to changes a short row by some tenths.
PADDING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def check_padding(model: RelevanceModel, short: Sequence[int], long: Sequence[int], pad_id: int) -> None:
    """Check that a row gets the same pooled state alone and padded beside a longer row.

    Args: those of `padding_effect`.

    Raises:
        BackboneUnavailableError: A row depends on its padding.
    """
    trunk: Any = model.trunk
    change = padding_effect(model, short, long, pad_id)
    tolerance = PADDING_TOLERANCE[trunk.get_input_embeddings().weight.dtype]
    if not change <= tolerance:  # NaN is refused too
        raise BackboneUnavailableError(
            f"rows of this {trunk.config.model_type} depend on the rows beside them: padding changes a "
            f"row by {change:.2g} of its size, at most {tolerance:g} is rounding; use a backbone whose "
            "layers hide padding"
        )


@torch.no_grad()
def padding_effect(model: RelevanceModel, short: Sequence[int], long: Sequence[int], pad_id: int) -> float:
    """Return the relative change of a row's pooled state when it is padded to the length of a longer row.

    Args:
        model: The model, in eval mode.
        short: Token ids of the row.
        long: Token ids of the longer row.
        pad_id: Token id of the padding.
    """
    device = next(model.parameters()).device
    task_B = torch.tensor([0, len(model.heads.num_labels_T) - 1], device=device)
    ids_BS = torch.tensor([[*short, *[pad_id] * (len(long) - len(short))], [*long]], device=device)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[0, len(short) :] = 0
    padded_D = model.pooled_states(ids_BS, mask_BS, task_B)[0]
    alone_D = model.pooled_states(ids_BS[:1, : len(short)], mask_BS[:1, : len(short)], task_B[:1])[0]
    return float((padded_D - alone_D).norm() / alone_D.norm())
