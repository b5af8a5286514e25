"""Errors that end the workers, sorted by what can be done about them."""

from pathlib import Path

from pipeline.config.training import TrainingConfig
from pipeline.errors import ConfigError, RelevanceError, RetryableError, summarize_error
from pipeline.runtime.ray_internals import is_startup_timeout

# words in a RuntimeError that was caused by the loss of another worker
PEER_FAILURE_KEYWORDS = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "store")

# errors of a worker's own code, as opposed to those that the loss of another worker causes
PROGRAMMING_ERRORS = (
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


def find_fatal_error(error: BaseException, training: TrainingConfig) -> Exception | None:
    """Return the error that makes another start of the workers pointless; None if there is none."""
    return (
        find_error(error, (RelevanceError,))
        or out_of_memory_error(error)
        or placement_timeout_error(error, training)
        or find_error(error, PROGRAMMING_ERRORS)
    )


def is_peer_failure(error: Exception) -> bool:
    """Return whether the error says that another worker was lost."""
    return any(word in str(error).lower() for word in PEER_FAILURE_KEYWORDS)


def find_error(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> Exception | None:
    """Return the first error of such a kind among the causes of `error` and the errors of workers."""
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


def placement_timeout_error(error: BaseException, training: TrainingConfig) -> RetryableError | None:
    """Return the error for the user if the cluster had no free resources for the workers in time."""
    if not is_startup_timeout(error):
        return None
    resources = f"{training.threads_per_worker} CPUs" + (" and a GPU" if training.use_gpu else "")
    return RetryableError(
        f"the Ray cluster had no room for {training.num_workers} workers of {resources} each; wait until "
        "others are done, add nodes, or lower training.num_workers or threads_per_worker, then run the same "
        "command again"
    )


def out_of_memory_error(error: BaseException) -> ConfigError | None:
    """Return the error for the user if a worker's device ran out of memory; a restart would too."""
    import torch

    memory_error = find_error(error, (torch.OutOfMemoryError,))
    if memory_error is None:
        return None
    return ConfigError(
        f"a worker ran out of memory ({summarize_error(memory_error)}); lower "
        "training.micro_batch_tokens, or set training.gradient_checkpointing, a higher "
        "deepspeed.zero_stage or offload"
    )


def collect_hang_reports(training_dir: Path, losses: int) -> list[Path]:
    """Rename the stack traces of workers that hung, so that the next workers do not overwrite them.

    Args:
        training_dir: Folder that the watchdogs write to.
        losses: How often workers were lost so far; a part of the new names.
    """
    reports = [path for path in sorted(training_dir.glob("stuck-*.txt")) if path.stat().st_size]
    return [
        path.rename(path.with_name(f"hung-{losses}-{path.name.removeprefix('stuck-')}")) for path in reports
    ]


def remove_hang_reports(training_dir: Path) -> None:
    """Remove the stack traces of an earlier command."""
    for path in (*training_dir.glob("stuck-*.txt"), *training_dir.glob("hung-*.txt")):
        path.unlink()
