"""DeepSpeed engine: its config, its construction, and gradient norms per parameter group."""

from __future__ import annotations

from typing import Any

import torch

from models.training.flat_parameters import FlatModel
from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from pipeline.inference.predictor import Predictor
from pipeline.training.deepspeed_internals import (
    disable_shared_memory_collectives,
    local_gradients,
    use_default_process_group,
)
from pipeline.training.optimizer import build_optimizer


def build_engine(
    predictor: Predictor, deepspeed: DeepSpeedConfig, training: TrainingConfig, optimizer: OptimizerConfig
) -> Any:
    """Build DeepSpeed's engine over the model's trained tensors, which are flat from here on."""
    from deepspeed import initialize

    disable_shared_memory_collectives()
    use_default_process_group()
    model = FlatModel(predictor.model)
    engine, *_ = initialize(
        model=model,
        model_parameters=list(model.trainable_state().values()),
        optimizer=build_optimizer(model, optimizer),
        config=deepspeed_config(deepspeed, training, optimizer),
    )
    return engine


def deepspeed_config(
    deepspeed: DeepSpeedConfig, training: TrainingConfig, optimizer: OptimizerConfig
) -> dict[str, Any]:
    """Return the config for `deepspeed.initialize`.

    It has no precision block: the frozen backbone keeps its dtype, and trained tensors are float32.
    DeepSpeed requires a batch size that the world size divides; the sampler decides the real one, and the
    loss is scaled to it.
    """
    zero: dict[str, Any] = {"stage": deepspeed.zero_stage}
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": max(1, training.batch_rows // training.num_workers),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,
        "zero_optimization": zero,
        # torch's AdamW also steps in the machine's memory; DeepSpeed's own would have to be compiled
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def gradient_norms(engine: Any) -> dict[str, float]:
    """Return the gradient norm of each parameter group over all ranks, before clipping.

    Valid between `backward` and `step`; all ranks must call it.
    """
    groups = engine.optimizer.param_groups
    squares_G = torch.zeros(len(groups), dtype=torch.float64, device=engine.device)
    for index, gradient in local_gradients(engine):
        squares_G[index] += gradient.detach().double().square().sum()
    if engine.zero_optimization_stage() > 0:
        torch.distributed.all_reduce(squares_G)
    # one copy for all groups: each would wait for a GPU
    return {group["name"]: square**0.5 for group, square in zip(groups, squares_G.tolist(), strict=True)}
