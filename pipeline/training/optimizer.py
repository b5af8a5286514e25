"""Parameter groups and the rate of each step."""

from typing import Any

import torch

from models.relevance import RelevanceModel
from models.training.flat_parameters import FlatModel
from pipeline.config.training import OptimizerConfig


def build_optimizer(model: RelevanceModel | FlatModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained tensors, one group for each kind of them. Each group carries its `name` and its
    `peak_rate`; decay never pulls a transform away from the identity, nor a mixture or a head towards zero.
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
    hold_what_has_no_gradient(optimizer)
    return optimizer


def hold_what_has_no_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Keep numbers whose gradient is exactly 0 as they are in a step: those of tasks that have no row in the
    batch.

    Adam would move them on by the momentum of steps that did see the task. Their moments fade as Adam has it,
    so that a task that comes back takes no larger step than others. Works on single numbers, so also on the
    flat parts that ZeRO makes of the parameters. Hooks, as DeepSpeed takes torch's own AdamW but no subclass
    of it.
    """
    before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        before.extend((p, p.detach().clone()) for p in parameters)

    def put_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, number in before:
                parameter.copy_(torch.where(parameter.grad == 0, number, parameter))  # type: ignore[arg-type]
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(put_back)


def rate_share(step: int, num_steps: int, warmup_share: float) -> float:
    """The share of the peak rate at a step counted from 0: a linear rise, then a linear fall to nothing just
    after the last step.
    """
    warmup_steps = max(1, round(num_steps * warmup_share))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (num_steps - step) / max(1, num_steps - warmup_steps)
