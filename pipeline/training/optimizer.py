"""AdamW over the trained tensors, and the learning-rate schedule."""

from typing import Any

import torch

from models.relevance import RelevanceModel
from models.training.flat_parameters import FlatModel
from pipeline.config.training import OptimizerConfig


def build_optimizer(model: RelevanceModel | FlatModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW with one parameter group for each kind of trained tensor.

    Each group carries its `name` and `peak_rate`. Only projections decay: decay would pull a transform away
    from the identity, and a mixture or a head towards zero.
    """
    rates = {
        "mixtures": config.mixture_learning_rate or config.learning_rate,
        "heads": config.head_learning_rate,
    }
    groups = [
        {
            "params": parameters,
            "name": name,
            "peak_rate": rates.get(name, config.learning_rate),
            "weight_decay": config.weight_decay if name == "projections" else 0.0,
        }
        for name, parameters in model.parameter_groups().items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    freeze_zero_gradient_entries(optimizer)
    return optimizer


def freeze_zero_gradient_entries(optimizer: torch.optim.Optimizer) -> None:
    """Keep entries whose gradient is exactly 0 unchanged: those of tasks without a row in the batch.

    Adam would move them by the momentum of steps that did see the task. Their moments decay as usual, so a
    task that returns takes no larger step than others. It works on single entries, hence also on the flat
    partitions that ZeRO makes of the parameters. It uses hooks because DeepSpeed accepts torch's AdamW but
    no subclass.
    """
    values_before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def save_values(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        values_before.extend((p, p.detach().clone()) for p in parameters)

    def restore_values(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, value in values_before:
                parameter.copy_(torch.where(parameter.grad == 0, value, parameter))  # type: ignore[arg-type]
        values_before.clear()

    optimizer.register_step_pre_hook(save_values)
    optimizer.register_step_post_hook(restore_values)


def learning_rate_scale(step: int, num_steps: int, warmup_share: float) -> float:
    """Return the factor of the peak learning rate at a step counted from 0.

    It rises linearly, then falls linearly to 0 just after the last step.
    """
    warmup_steps = max(1, round(num_steps * warmup_share))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (num_steps - step) / max(1, num_steps - warmup_steps)
