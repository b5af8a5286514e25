"""What ended the workers, and what a user can do about it."""

from pathlib import Path

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, RetryableError, last_line

# words of a RuntimeError that tells of another worker
OF_OTHERS = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "store")

# what a worker's own code raises, as opposed to what it raises because another worker is gone
BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def stuck_files(live_path: Path, losses: int) -> list[Path]:
    """What workers that got no further left, put where the next ones will not write. `losses`: how often
    workers were lost by now.
    """
    left = [path for path in sorted(live_path.parent.glob("stuck-*.txt")) if path.stat().st_size]
    return [path.rename(path.with_name(f"hung-{losses}-{path.name.removeprefix('stuck-')}")) for path in left]


def find_error(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> Exception | None:
    """The first error of such a kind that workers raised, if one of them ended the training."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, kinds) and not hasattr(error, "worker_failures"):
            return error
        for failure in getattr(error, "worker_failures", {}).values():
            inner = find_error(failure, kinds)
            if inner is not None:
                return inner
        error = error.__cause__ or getattr(error, "cause", None)
    return None


def no_room(error: BaseException, config: RunConfig) -> RetryableError | None:
    """What to look at where the cluster found no place for the workers in the time that it has for it."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    if not isinstance(getattr(error, "controller_failure", error), WorkerGroupStartupTimeoutError):
        return None
    training = config.training
    each = f"{training.threads_per_worker} CPUs" + (" and a GPU" if training.use_gpu else "")
    cure = "wait until others are done, add nodes, or lower training.num_workers or threads_per_worker"
    return RetryableError(
        f"the Ray cluster had no room for {training.num_workers} workers of {each} each; {cure}, then run "
        "the same command again"
    )


def out_of_memory(error: BaseException) -> ConfigError | None:
    """What to change where a worker's device had no memory left, which it would not have the next time
    either.
    """
    import torch

    found = find_error(error, (torch.OutOfMemoryError,))
    if found is None:
        return None
    cure = (
        "lower training.micro_batch_tokens, or set training.gradient_checkpointing, a higher "
        "deepspeed.zero_stage or offload"
    )
    return ConfigError(f"a worker ran out of memory ({last_line(found)}); {cure}")
