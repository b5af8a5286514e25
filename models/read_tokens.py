"""The last layer of a packed pass, for the tokens that are read.

Of what the last layer makes, nothing but the state of each row's last token is read. Keys and values come of all tokens; queries, what follows
attention and the feed-forward part take token by token, so here they get the tokens that are read, and give zeros for the others.

Shape legend: B rows, N tokens of a pass, D width in, O width out.
"""

from typing import Any

import torch
from torch import nn

from models.adapters.routing import TaskRouting
from models.inject import adapted_layers


class ReadTokens:
    """Hooks on a trunk's last layer, for passes that `begin` told of; in all others the layer is as it was."""

    def __init__(self, layer: nn.Module, routing: TaskRouting) -> None:
        self.routing = routing
        self.modules = [module for name, module in layer.named_modules() if name.rpartition(".")[2] in TOKEN_BY_TOKEN]
        self.adapted = [adapted for module in self.modules for adapted in adapted_layers(module).values()]
        self.inside: list[tuple[nn.Module, int]] = []  # those that run with read tokens now, and N
        self.handles: list[Any] = [module.register_forward_pre_hook(self._gather) for module in self.modules]
        self.handles += [module.register_forward_hook(self._scatter, always_call=True) for module in self.modules]

    def remove(self) -> None:
        """The layer as it was."""
        for handle in self.handles:
            handle.remove()

    def num_frozen(self) -> int:
        """Numbers of the frozen matrices that only read tokens go through."""
        return sum(p.numel() for module in self.modules for p in module.parameters() if not p.requires_grad and p.ndim == 2)

    def begin(self, read_B: torch.Tensor) -> None:
        """The pass in flight, of tokens whose tasks are known, is read at these."""
        in_flight = self.routing.in_flight
        assert in_flight is not None, "a pass is in flight"
        of_read = self.routing.tasks(self.routing.current().index_select(1, read_B))
        with of_read:
            of_read.prepare(self.adapted)
        in_flight.read = (of_read, read_B)

    def _gather(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """(1, N, D) -> (1, B, D)"""
        in_flight = self.routing.in_flight
        if in_flight is None or in_flight.read is None:
            return None
        of_read, read_B = in_flight.read
        of_read.__enter__()
        self.inside.append((module, args[0].shape[1]))
        return args[0].index_select(1, read_B), *args[1:]

    def _scatter(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | None) -> torch.Tensor | None:
        """(1, B, O) -> (1, N, O); None came of an error."""
        if not self.inside or self.inside[-1][0] is not module:
            return None
        _, num_tokens = self.inside.pop()
        assert self.routing.in_flight is not None, "it was entered"
        self.routing.in_flight.__exit__()
        if output is None:
            return None
        assert self.routing.in_flight.read is not None, "that of the pass, which told of it"
        return output.new_zeros(1, num_tokens, output.shape[2]).index_copy(1, self.routing.in_flight.read[1], output)


TOKEN_BY_TOKEN = ("q_proj", "o_proj", "mlp")  # as transformers' decoders name them; where one has other names it takes all tokens there
