"""Request to stop a training, which the driver hands to the workers."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StopSignal:
    """Request to stop: a file that the driver creates.

    Only rank 0 looks for it, because storage need not show a file to all ranks at the same time.
    """

    path: Path
    rank: int = 0

    def request(self) -> None:
        """Ask the workers to stop."""
        self.path.touch()

    def clear(self) -> None:
        """Withdraw the request."""
        self.path.unlink(missing_ok=True)

    def is_requested(self) -> bool:
        """Return whether the request is there; always false on ranks above 0."""
        return self.rank == 0 and self.path.exists()
