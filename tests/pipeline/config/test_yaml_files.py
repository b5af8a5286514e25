"""YAML settings are read as they stand, or refused with their lines."""

from pathlib import Path

import pytest
import yaml

from pipeline.config.loading import build_config, read_config
from pipeline.config.yaml_files import parse_yaml, read_yaml_mapping
from pipeline.errors import ConfigError
from tests.support.planted import planted_config

TWICE = [
    ("a: 1\nb: 2\na: 3", "a is written twice, in lines 1 and 3"),
    ("a:\n  b:\n  - {c: 1}\n  - c: 1\n    d: 2\n    c: 3", "a.b.1.c is written twice, in lines 4 and 6"),
    ("{a: 1, a: 1}", "a is written twice, in line 1"),
    ("no: 1\noff: 2", "off is written twice, in lines 1 and 2"),
    ("1: x\n'1': y\na: 1\na: 2", "a is written twice, in lines 3 and 4"),
]


@pytest.mark.parametrize(("text", "message"), TWICE)
def test_key_written_twice_is_refused_with_both_lines(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}; keep one$"):
        parse_yaml(text)


def test_setting_written_twice_is_refused_wherever_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {patience: 1}\nname: x\ntraining: {epochs: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="training is written twice, in lines 1 and 3"):
        read_config(path)
    with pytest.raises(ConfigError, match="training is written twice, in lines 1 and 3"):
        read_yaml_mapping(path, "mapping", "", "")
    path.write_text("name: x", encoding="utf-8")
    with pytest.raises(ConfigError, match="patience is written twice, in line 1"):
        read_config(path, ["training={patience: 1, patience: 2}"])


def test_merged_and_shared_blocks_are_read() -> None:
    assert parse_yaml("a: &a {k: 1}\nb:\n  <<: *a\n  k: 2\nc: [*a, *a]") == {
        "a": {"k": 1},
        "b": {"k": 2},
        "c": [{"k": 1}, {"k": 1}],
    }


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: [1", "a: 1\n---\nb: 2", "a\x01", "a: 2026-13-45", "*a"])
def test_unreadable_yaml_is_a_problem_of_one_line(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_yaml(text)
    assert "\n" not in str(refused.value)


def test_yaml_error_does_not_quote_a_password() -> None:
    with pytest.raises(ValueError) as refused:
        parse_yaml("registry: {tracking_uri: http://alice:secret@host: 5000: x}")
    assert "secret" not in str(refused.value)


UNQUOTED = [
    ("tasks.0.labels=[no, yes]", "tasks.0.labels.0: .* quote it, such as 'no'"),
    ("tasks.0.name=on", "tasks.0.name: .* quote it, such as 'no'"),
    ("tasks.0.labels=[1, 2.5]", "tasks.0.labels.1: .* reads it as a number: quote it, as '2.5'"),
    ("tasks.0.labels=[2026-01-01, x]", "reads it as a date: quote it, as '2026-01-01'"),
    ("tasks.0.labels=[null, x]", "quote it, as 'null'"),
    ("gate.scripts={no: [latin]}", "quote it, such as 'no'"),
    ("sources.0.constants.market=no", "constants.market must be a text; quote it, such as 'no'"),
    ("sources.0.constants.label=yes", "sources.0.constants.label: true is not a number"),
    ("sources.0.labels={g: no}", "sources.0.labels.g: false is not a number; .* quote the word"),
    ("training.num_workers=yes", "training.num_workers: true is not a number"),
    ("adapter.rank=on", "adapter.rank: true is not a number"),
]


@pytest.mark.parametrize(("override", "message"), UNQUOTED)
def test_word_that_yaml_changes_needs_quotes(tmp_path: Path, override: str, message: str) -> None:
    table = {
        "kind": "table",
        "path": "x.csv",
        "task": "two",
        "columns": {"query": "q", "ad_title": "t"},
        "constants": {"market": "us"},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(planted_config(tmp_path, "package:x", sources=[table])), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_config(path, [override])


def test_truth_values_of_switches_keep_every_spelling(tmp_path: Path) -> None:
    for word in ("yes", "no", "on", "off", "true", "'no'"):
        settings = planted_config(tmp_path, "package:x")
        settings["training"]["use_gpu"] = parse_yaml(word)
        assert build_config(settings, "c").training.use_gpu is (word in ("yes", "on", "true"))
