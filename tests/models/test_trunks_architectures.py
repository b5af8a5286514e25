"""The table of architectures in models/README.md holds what small models of them do."""

import pytest

from tests.support.architecture_settings import SETTINGS
from tests.support.architectures import (
    END,
    README,
    START,
    render_row,
    render_table,
    try_architecture,
)

# one of each kind: a Llama, Conv1D, fused experts, a state space, an encoder, one that attends to padding, an
# unsupported model
SAMPLE = ("llama", "gpt2", "qwen3_moe", "mamba", "bert", "fnet", "t5")


def readme_table() -> str:
    """Return the table in the README."""
    return README.read_text().partition(START)[2].partition(END)[0].strip()


def test_table_has_at_least_forty_architectures() -> None:
    table = readme_table()
    assert len(SETTINGS) >= 40
    assert [name for name in SETTINGS if f"| `{name}` |" not in table] == []


@pytest.mark.parametrize("model_type", SAMPLE)
def test_readme_holds_what_an_architecture_does(model_type: str) -> None:
    assert render_row(try_architecture(model_type)) in readme_table()


@pytest.mark.failures
def test_readme_holds_what_every_architecture_does() -> None:
    assert readme_table() == render_table([try_architecture(model_type) for model_type in SETTINGS])
