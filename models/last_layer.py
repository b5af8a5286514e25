"""The last layer of a packed pass, for the tokens that are read.

Of what the last layer makes, nothing but the state of each row's last token is read. Keys and values come of
all tokens; queries, what follows attention and the feed-forward part take token by token, so here they get
the tokens that are read, and give zeros for the others.

Shape legend: B rows, N tokens of a pass, D width in, O width out.
"""

import re
from typing import Any

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.adapters.routing import TaskRouting, TasksInFlight


class ReadInFlight(TasksInFlight):
    """Tasks of the tokens that are read, entered while a module takes these alone."""

    def __init__(self, routing: TaskRouting, read_B: torch.Tensor) -> None:
        super().__init__(routing, routing.current().index_select(1, read_B))
        self.read_B = read_B
        self.module: nn.Module | None = None  # that takes them now
        self.num_tokens = 0  # of the pass


class ReadTokens:
    """Hooks on a trunk's last layer, for passes that `begin` told of; in all others the layer is as it
    was.
    """

    def __init__(self, layer: nn.Module, routing: TaskRouting) -> None:
        self.routing = routing
        self.modules = [module for name, module in layer.named_modules() if TOKEN_BY_TOKEN.fullmatch(name)]
        self.adapted = [adapted for module in self.modules for adapted in adapted_layers(module).values()]
        self.handles: list[Any] = [module.register_forward_pre_hook(self._gather) for module in self.modules]
        self.handles += [
            module.register_forward_hook(self._scatter, always_call=True) for module in self.modules
        ]

    def remove(self) -> None:
        """The layer as it was."""
        for handle in self.handles:
            handle.remove()

    def begin(self, read_B: torch.Tensor) -> None:
        """The pass in flight, of tokens whose tasks are known, is read at these."""
        in_flight = self.routing.in_flight
        assert in_flight is not None, "a pass is in flight"
        of_read = ReadInFlight(self.routing, read_B)
        with of_read:
            of_read.prepare(self.adapted)
        in_flight.read = of_read

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """(1, N, D) -> (1, B, D)"""
        of_read = self.routing.in_flight.read if self.routing.in_flight is not None else None
        if not isinstance(of_read, ReadInFlight):
            return None
        of_read.__enter__()
        of_read.module, of_read.num_tokens = module, args[0].shape[1]
        return args[0].index_select(1, of_read.read_B), *args[1:]

    def _scatter(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        """(1, B, O) -> (1, N, O), of several outputs the first; None came of an error."""
        of_read = self.routing.in_flight
        if not isinstance(of_read, ReadInFlight) or of_read.module is not module:
            return None
        of_read.__exit__()
        if output is None:
            return None
        first, *others = output if isinstance(output, tuple) else (output,)
        whole = first.new_zeros(1, of_read.num_tokens, first.shape[2]).index_copy(1, of_read.read_B, first)
        return (whole, *others) if isinstance(output, tuple) else whole


# as most of transformers' decoders name them; under other names they take all tokens
TOKEN_BY_TOKEN = re.compile(r"mlp|\w+\.(q_proj|o_proj)")
