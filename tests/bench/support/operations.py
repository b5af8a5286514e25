"""Count of the operations that PyTorch launches."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counter of the operations that run while entered, forward and backward; views are counted apart."""

    VIEWS = (
        "view",
        "transpose",
        "aten.t.",
        "squeeze",
        "expand",
        "slice",
        "select",
        "detach",
        "alias",
        "split",
        "unbind",
        "permute",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.views: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(word in str(operation) for word in self.VIEWS)
        (self.views if is_view else self.seen)[str(operation)] += 1
        return operation(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of operations but views."""
        return sum(self.seen.values())
