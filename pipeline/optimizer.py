"""Parameter groups and the rate of each step."""

import torch

from models.relevance import RelevanceModel
from pipeline.config import OptimizerConfig


def build_optimizer(model: RelevanceModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained tensors. Each group carries its `peak_rate`; decay never pulls a transform away from the identity,
    nor a mixture or a head towards zero."""
    projections: list[torch.nn.Parameter] = []
    small: list[torch.nn.Parameter] = []
    heads: list[torch.nn.Parameter] = []
    for name, parameter in model.trainable_state().items():
        group = heads if name.startswith("heads.") else projections if name.endswith(("down_RD", "up_NOR")) else small
        group.append(parameter)
    groups = [
        {"params": projections, "peak_rate": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": small, "peak_rate": config.learning_rate, "weight_decay": 0.0},
        {"params": heads, "peak_rate": config.head_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8)


def rate_share(step: int, num_steps: int, warmup_share: float) -> float:
    """The share of the peak rate at a step counted from 0: a linear rise, then a linear fall to nothing just after the last step."""
    warmup_steps = max(1, round(num_steps * warmup_share))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (num_steps - step) / max(1, num_steps - warmup_steps)
