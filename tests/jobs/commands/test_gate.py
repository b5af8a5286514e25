"""Next command after a version passed the gate."""

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.commands import gate
from pipeline.registry.promotion_log import PromotionLog


@pytest.mark.parametrize(
    ("champion", "step"),
    [
        (None, "promote --version 2"),
        ("1", "promote --version 2"),
        ("2", "score"),
        ("3", "evaluate --version 2"),
    ],
)
def test_promotion_is_suggested_only_against_the_champion(
    monkeypatch: pytest.MonkeyPatch, champion: str | None, step: str
) -> None:
    entries = [SimpleNamespace(version=champion)] if champion else []
    log = SimpleNamespace(read=lambda client: entries)
    monkeypatch.setattr(gate, "connect_mlflow", lambda uri: None)
    monkeypatch.setattr(PromotionLog, "from_config", lambda config: log)
    config: Any = SimpleNamespace(tracking_uri="sqlite:///x")
    run: Any = SimpleNamespace(suggest=lambda *words: " ".join(words))
    assert gate.suggest_after_pass(config, "2", "1", run) == step
