"""Restriction of the last layer of a packed pass to the tokens that are read.

Only the state of each row's last token is read from the last layer. Its keys and values need all tokens. Its
queries, output projection and feed-forward part work token by token, so they get the read tokens alone and
give zeros for the others.

Shape legend: B rows, N tokens of a pass, D width in, O width out.
"""

import re
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.adapters.routing import TaskContext, TaskRouting

# module names in most decoders of transformers; modules with other names take all tokens
TOKENWISE_MODULES = re.compile(r"mlp|\w+\.(q_proj|o_proj)")


class ReadTokenSelector:
    """Hooks on a trunk's last layer that act in passes announced by `begin`, and in no other."""

    def __init__(self, layer: nn.Module, routing: TaskRouting) -> None:
        self.routing = routing
        self.modules = [module for name, module in layer.named_modules() if TOKENWISE_MODULES.fullmatch(name)]
        self.adapted = [adapted for module in self.modules for adapted in adapted_layers(module).values()]
        self.handles: list[Any] = [module.register_forward_pre_hook(self._gather) for module in self.modules]
        self.handles += [
            module.register_forward_hook(self._scatter, always_call=True) for module in self.modules
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def begin(self, read_B: torch.Tensor) -> None:
        """Restrict the active pass, whose task ids are those of tokens, to the tokens `read_B`."""
        context = self.routing.context
        assert context is not None, "begin was called outside a pass"
        read_context = ReadTokenContext(self.routing, read_B)
        with read_context:
            read_context.prepare(self.adapted)
        context.read_context = read_context

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Select the read tokens: (1, N, D) -> (1, B, D)."""
        context = self.routing.context
        read_context = context.read_context if context is not None else None
        if not isinstance(read_context, ReadTokenContext):
            return None
        read_context.__enter__()
        read_context.module, read_context.num_tokens = module, args[0].shape[1]
        return args[0].index_select(1, read_context.read_B), *args[1:]

    def _scatter(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        """Put the (first) output back among zeros: (1, B, O) -> (1, N, O).

        The output is None after an error in the module; then only the context ends.
        """
        read_context = self.routing.context
        if not isinstance(read_context, ReadTokenContext) or read_context.module is not module:
            return None
        read_context.__exit__()
        if output is None:
            return None
        first, *others = output if isinstance(output, tuple) else (output,)
        zeros = first.new_zeros(1, read_context.num_tokens, first.shape[2])
        all_tokens = zeros.index_copy(1, read_context.read_B, first)
        return (all_tokens, *others) if isinstance(output, tuple) else all_tokens


class ReadTokenContext(TaskContext):
    """Task ids of the read tokens, entered while a module takes these alone."""

    def __init__(self, routing: TaskRouting, read_B: torch.Tensor) -> None:
        super().__init__(routing, routing.current_tasks().index_select(1, read_B))
        self.read_B = read_B
        self.module: nn.Module | None = None  # the module that runs
        self.num_tokens = 0  # of the whole pass
