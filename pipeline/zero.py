"""The config's DeepSpeed block as DeepSpeed's own config."""

from typing import Any

import torch

from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig


def deepspeed_config(deepspeed: DeepSpeedConfig, training: TrainingConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` takes. No precision block: the frozen trunk keeps its own dtype, what is trained is float32.

    DeepSpeed wants a batch size that the world divides; the sampler decides the real one and its passes, and the loss is scaled to it.
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
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps in memory too; DeepSpeed's own would be compiled first
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def gradient_norms(engine: Any) -> dict[str, float]:
    """The length of the gradient of each of the optimizer's groups, over all ranks, before clipping. Between `backward` and `step`; all
    ranks must call it."""
    zero_stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    groups = optimizer.param_groups
    squares_G = torch.zeros(len(groups), dtype=torch.float64, device=engine.device)
    # each rank holds the parts of the gradients that it steps on; ZeRO 3 cuts groups into smaller ones
    group_of = optimizer.sub_group_to_group_id if zero_stage == 3 else {index: index for index in range(len(groups))}
    if zero_stage == 0:
        gradients = [(index, p.grad) for index, group in enumerate(groups) for p in group["params"] if p.grad is not None]
    elif engine.zero_use_cpu_optimizer():
        parts = optimizer.fp32_partitioned_groups_flat if zero_stage == 3 else optimizer.single_partition_of_fp32_groups
        gradients = [(group_of[index], part.grad) for index, part in enumerate(parts) if part.grad is not None]
    else:
        gradients = [(group_of[index], part) for index, parts in optimizer.averaged_gradients.items() for part in parts or ()]
    for index, gradient in gradients:
        squares_G[index] += gradient.detach().double().square().sum()
    if zero_stage > 0:
        torch.distributed.all_reduce(squares_G)
    return {group["name"]: float(square) ** 0.5 for group, square in zip(groups, squares_G, strict=True)}
