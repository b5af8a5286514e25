"""Config blocks of training: workers and batches, optimizer, DeepSpeed."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.strict_model import StrictModel


class TrainingConfig(StrictModel):
    """Workers, duration and batches of training."""

    num_workers: int = Field(default=2, ge=1)  # training processes
    use_gpu: bool = False  # one GPU per worker
    threads_per_worker: int = Field(default=1, ge=1)  # CPU threads per worker
    epochs: float = Field(default=1.0, gt=0)  # passes over the training rows
    batch_rows: int = Field(default=16, ge=1)  # rows per step, summed over all workers
    # tokens of one forward pass of a worker, padding included; default: one pass per step
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    # 1: every row once per epoch; higher values sample small tasks more often
    task_temperature: float = Field(default=1.0, ge=1)
    # rows per task and epoch, other rows each epoch; default: all
    max_task_rows: int | None = Field(default=None, ge=1)
    # steps between evaluations on the valid split; the best weights are kept; default: one epoch
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    evaluate_task_rows: int = Field(default=500, ge=1)  # valid rows per task of one evaluation
    # evaluations without improvement after which training stops; default: never
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every_steps: int = Field(
        default=200, ge=1
    )  # steps between checkpoints; at most these are repeated after a failure
    # seconds without progress after which workers are restarted; model loading counts
    hang_timeout_s: float = Field(default=600.0, gt=0)
    # recompute layers in the backward pass: less memory, about a third more time
    gradient_checkpointing: bool = False
    # torch.compile: faster steps after about a minute of compiling; every worker needs a C++ compiler
    compile_layers: bool = False

    @model_validator(mode="after")
    def _check_batch_rows(self) -> "TrainingConfig":
        if self.batch_rows < self.num_workers:
            raise ValueError(
                f"training.batch_rows is {self.batch_rows}; it must be at least training.num_workers, "
                f"{self.num_workers}, so that every worker gets a row"
            )
        return self


class OptimizerConfig(StrictModel):
    """AdamW with linear warm-up and linear decay of the learning rate."""

    learning_rate: float = Field(default=5e-4, gt=0)  # peak learning rate of the adapters
    head_learning_rate: float = Field(default=5e-4, gt=0)  # peak learning rate of the output heads
    # peak learning rate of the weights that mix projections or experts; default: learning_rate
    mixture_learning_rate: float | None = Field(default=None, gt=0)
    # weight decay of down- and up-projections; transforms, mixtures and heads have none
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_share: float = Field(default=0.06, ge=0, lt=1)  # share of the steps for warm-up
    gradient_clipping: float = Field(default=1.0, gt=0)  # largest global norm of the gradients


class DeepSpeedConfig(StrictModel):
    """State that DeepSpeed shards over the workers."""

    # ZeRO stage, the sharded state. 0: none, 1: optimizer, 2: and gradients, 3: and parameters
    zero_stage: Literal[0, 1, 2, 3] = 2
    # keep the optimizer's state in CPU memory and compute its step there
    offload_optimizer: bool = False
    offload_parameters: bool = False  # keep parameters in CPU memory until they are needed

    @model_validator(mode="after")
    def _check_offload(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3; it is 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(
                f"deepspeed.offload_parameters needs deepspeed.zero_stage 3; it is {self.zero_stage}"
            )
        return self
