"""Parameter groups and the rate of each step."""

import torch

from models.relevance import RelevanceModel
from pipeline.config import OptimizerConfig


def build_optimizer(model: RelevanceModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained tensors, one group for each kind of them. Each group carries its `name` and its `peak_rate`; decay never
    pulls a transform away from the identity, nor a mixture or a head towards zero."""
    rates = {"mixtures": config.mixture_learning_rate or config.learning_rate, "heads": config.head_learning_rate}
    groups = [
        {
            "params": parameters,
            "name": name,
            "peak_rate": rates.get(name, config.learning_rate),
            "weight_decay": config.weight_decay if name == "projections" else 0.0,
        }
        for name, parameters in model.parameter_groups().items()
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8)


def rate_share(step: int, num_steps: int, warmup_share: float) -> float:
    """The share of the peak rate at a step counted from 0: a linear rise, then a linear fall to nothing just after the last step."""
    warmup_steps = max(1, round(num_steps * warmup_share))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (num_steps - step) / max(1, num_steps - warmup_steps)
