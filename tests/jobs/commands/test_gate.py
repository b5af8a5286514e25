"""Next command after a version passed the gate."""

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.commands.gate import suggest_after_pass


@pytest.mark.parametrize(
    ("champion", "step"),
    [
        (None, "promote --version 2"),
        ("1", "promote --version 2"),
        ("2", "score"),
        ("3", "evaluate --version 2"),
    ],
)
def test_promotion_is_suggested_only_against_the_champion(champion: str | None, step: str) -> None:
    run: Any = SimpleNamespace(suggest=lambda *words: " ".join(words))
    assert suggest_after_pass(champion, "2", "1", run) == step
