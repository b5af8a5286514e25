"""Private APIs of torch, each with its reason."""

import torch


def cpu_has_bfloat16_instructions() -> bool:
    """Return whether the CPU multiplies bfloat16 natively.

    The public `torch.cpu.get_capabilities` is newer than the oldest supported torch.
    """
    return torch.cpu._is_avx512_bf16_supported()


def configure_dynamic_compilation(recompile_limit: int) -> None:
    """Have torch.compile keep one graph for batches of any shape.

    The settings hold for the whole process. torch offers none of them as an argument of `torch.compile`
    in all supported versions.
    """
    # layers with and without adapters, and batches of one row, each need code of their own
    torch._dynamo.config.recompile_limit = recompile_limit
    # otherwise sizes that are equal by chance in the first batch (number of tasks, rank) count as one symbol,
    # and the next batch recompiles
    torch.fx.experimental._config.use_duck_shape = False
    # otherwise constant scale factors become graph inputs first, and the graph is compiled again
    torch._dynamo.config.specialize_float = True
