"""Overrides of settings change what they name, and nothing else."""

from pathlib import Path

from pipeline.config.loading import apply_override, read_config
from pipeline.config.yaml_files import parse_yaml
from tests.support.planted import planted_config, write_config


def test_override_changes_one_of_two_blocks_with_an_anchor() -> None:
    settings = parse_yaml("{a: &x {k: {m: 1}}, b: *x, c: [*x]}")
    apply_override(settings, "a.k.m=2")
    assert settings == {"a": {"k": {"m": 2}}, "b": {"k": {"m": 1}}, "c": [{"k": {"m": 1}}]}


def test_override_fills_an_empty_block(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", planted_config(tmp_path, "package:x", training=None))
    assert read_config(path, ["training.epochs=2"]).training.epochs == 2
