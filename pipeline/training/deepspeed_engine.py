"""The DeepSpeed engine: its config, its construction, and the gradient norms it hides."""

from __future__ import annotations

from typing import Any

import torch

from models.training.flat_parameters import FlatModel
from pipeline.config.run import RunConfig
from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from pipeline.inference.predictor import Judge
from pipeline.training.optimizer import build_optimizer


def build_engine(config: RunConfig, judge: Judge) -> Any:
    """DeepSpeed's engine over the model's trained numbers, which lie flat from here on."""
    import deepspeed

    # skip the shared-memory collective that DeepSpeed would compile for a minute on a first run: gloo does
    # here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # or DeepSpeed would make a group of its own, whose collectives would wait for half an hour, whatever the
    # config says. Its experts and hpZ, which we do not have, would hang with this one: they look for the end
    # of its ranks
    deepspeed.utils.groups._WORLD_GROUP = torch.distributed.group.WORLD
    model = FlatModel(judge.model)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.trainable_state().values()),
        optimizer=build_optimizer(model, config.optimizer),
        config=deepspeed_config(config.deepspeed, config.training, config.optimizer),
    )
    return engine


def deepspeed_config(
    deepspeed: DeepSpeedConfig, training: TrainingConfig, optimizer: OptimizerConfig
) -> dict[str, Any]:
    """What `deepspeed.initialize` takes. No precision block: the frozen trunk keeps its own dtype, what is
    trained is float32.

    DeepSpeed wants a batch size that the world divides; the sampler decides the real one and its passes, and
    the loss is scaled to it.
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
        # torch's AdamW steps in memory too; DeepSpeed's own would be compiled first
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def gradient_norms(engine: Any) -> dict[str, float]:
    """The length of the gradient of each of the optimizer's groups, over all ranks, before clipping. Between
    `backward` and `step`; all ranks must call it.
    """
    zero_stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    groups = optimizer.param_groups
    squares_G = torch.zeros(len(groups), dtype=torch.float64, device=engine.device)
    # each rank holds the parts of the gradients that it steps on; ZeRO 3 cuts groups into smaller ones
    group_of = (
        optimizer.sub_group_to_group_id if zero_stage == 3 else {index: index for index in range(len(groups))}
    )
    if zero_stage == 0:
        gradients = [
            (index, p.grad)
            for index, group in enumerate(groups)
            for p in group["params"]
            if p.grad is not None
        ]
    elif engine.zero_use_cpu_optimizer():
        parts = (
            optimizer.fp32_partitioned_groups_flat
            if zero_stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
        gradients = [
            (group_of[index], part.grad) for index, part in enumerate(parts) if part.grad is not None
        ]
    else:
        gradients = [
            (group_of[index], part)
            for index, parts in optimizer.averaged_gradients.items()
            for part in parts or ()
        ]
    for index, gradient in gradients:
        squares_G[index] += gradient.detach().double().square().sum()
    if zero_stage > 0:
        torch.distributed.all_reduce(squares_G)
    return {group["name"]: float(square) ** 0.5 for group, square in zip(groups, squares_G, strict=True)}
