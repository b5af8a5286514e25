"""The config's DeepSpeed block as DeepSpeed's own config."""

from typing import Any

from pipeline.config import DeepSpeedConfig, OptimizerConfig, TrainingConfig


def deepspeed_config(deepspeed: DeepSpeedConfig, training: TrainingConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` takes. No precision block: the frozen trunk keeps its own dtype, what is trained is float32.

    DeepSpeed wants a batch size that the world divides; the sampler decides the real one, and the loss is scaled to it.
    """
    return {
        "train_micro_batch_size_per_gpu": max(1, training.batch_rows // training.num_workers),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,
        "zero_optimization": {"stage": deepspeed.zero_stage},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
