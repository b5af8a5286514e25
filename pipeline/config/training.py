"""Config blocks of training: workers and batches, optimizer, DeepSpeed."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.strict_model import Frozen


class TrainingConfig(Frozen):
    """How long, on how many workers, in which batches."""

    num_workers: int = Field(default=2, ge=1)  # training processes
    use_gpu: bool = False  # one GPU for each of them
    threads_per_worker: int = Field(default=1, ge=1)  # CPU threads of one worker
    epochs: float = Field(default=1.0, gt=0)  # passes over the training rows
    batch_rows: int = Field(default=16, ge=1)  # rows of a step, all workers together
    # tokens of one pass of a worker, padding included; default: a step is one pass
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    # 1: every row once an epoch; higher: small tasks come more often
    task_temperature: float = Field(default=1.0, ge=1)
    # rows of one task an epoch, other ones each time; default: all
    max_task_rows: int | None = Field(default=None, ge=1)
    # on the valid split, the best weights kept; default: after each epoch
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    evaluate_task_rows: int = Field(default=500, ge=1)  # valid rows of a task that are judged each time
    # evaluations in a row no better than the best that end the training; default: none do
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every_steps: int = Field(default=200, ge=1)  # a lost worker costs so many steps at most
    # without progress, loading the model included: then workers are given up and started again
    hang_timeout_s: float = Field(default=600.0, gt=0)
    # recompute layers in the backward pass: less memory, about a third more time
    gradient_checkpointing: bool = False
    # torch.compile: faster steps, after a minute or so of compiling; needs a C++ compiler on every worker
    compile_layers: bool = False

    @model_validator(mode="after")
    def _every_worker_gets_a_row(self) -> "TrainingConfig":
        if self.batch_rows < self.num_workers:
            raise ValueError(
                f"training.batch_rows is {self.batch_rows}; it must be at least training.num_workers, "
                f"{self.num_workers}"
            )
        return self


class OptimizerConfig(Frozen):
    """AdamW with a linear rise and fall of the rate."""

    learning_rate: float = Field(default=5e-4, gt=0)  # peak, of the adapters
    head_learning_rate: float = Field(default=5e-4, gt=0)  # peak, of the output heads
    # peak, of what mixes projections or experts; default: learning_rate
    mixture_learning_rate: float | None = Field(default=None, gt=0)
    # of down- and up-projections; never of transforms, mixtures and heads
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_share: float = Field(default=0.06, ge=0, lt=1)  # of all steps
    gradient_clipping: float = Field(default=1.0, gt=0)  # norm of all gradients together


class DeepSpeedConfig(Frozen):
    """What DeepSpeed spreads over the workers."""

    zero_stage: Literal[0, 1, 2, 3] = 2  # 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters
    # the optimizer's state in the machine's memory, where the step is then computed
    offload_optimizer: bool = False
    offload_parameters: bool = False  # and the parameters, until they are needed

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3: at 0 nothing is spread"
            )
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(
                "deepspeed.offload_parameters needs deepspeed.zero_stage 3, where parameters are spread; "
                f"it is {self.zero_stage}"
            )
        return self
