"""YAML settings are read as they stand, or refused with their lines."""

import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from pipeline.config.loading import apply_override, build_config, read_config
from pipeline.config.yaml_files import parse_yaml, read_yaml_mapping
from pipeline.errors import ConfigError
from tests.support.planted import planted_config

TWICE = [
    ("a: 1\nb: 2\na: 3", "a is written twice, in lines 1 and 3"),
    ("a:\n  b:\n  - {c: 1}\n  - c: 1\n    d: 2\n    c: 3", "a.b.1.c is written twice, in lines 4 and 6"),
    ("{a: 1, a: 1}", "a is written twice, in line 1"),
    ("no: 1\noff: 2", r"off is written twice \(as no too\), in lines 1 and 2"),
    ("1: x\n'1': y\na: 1\na: 2", "a is written twice, in lines 3 and 4"),
    ("{&k a: 1, *k : 2}", "a is written twice, in line 1"),
    ("b: {1: x, 1.0: y}", r"b.1.0 is written twice \(as 1 too\), in line 1"),
    ("~: x\nnull: y", r"null is written twice \(as ~ too\), in lines 1 and 2"),
    ("true: x\n1: y", r"1 is written twice \(as true too\), in lines 1 and 2"),
    ("'a': x\n\"\\x61\": y", "a is written twice, in lines 1 and 2"),
    ("2026-01-01 00:00:00: x\n2026-01-01T00:00:00Z: y\n2026-01-01T00:00:00.0: z", ".*is written twice .*3"),
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


MAX_EVENTS = 6_000_000  # twice what the largest file takes that is read to its limit
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
for last, name in zip("abcdefgh", "bcdefghi", strict=True):
    BOMB += f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n"
LARGE = [
    (BOMB, "line 4, column .*: d.*: more than 10,000 values, with what aliases stand for"),
    (
        "a: &a {k: 1}\n"
        + "".join(
            f"b{n}: &b{n}\n  <<: [{','.join(['*a' if n == 0 else f'*b{n - 1}'] * 30)}]\n" for n in range(9)
        ),
        "line .*: b.*: more than 10,000 values",
    ),
    ("".join(f"k{number}: 1\n" for number in range(20_000)), "line 5001, .*: more than 10,000 values"),
    ("a: " + "[" * 10_000 + "]" * 10_000, "line 1, .*: a.0.0.*: nested more than 50 levels deep"),
    (
        "x: 1\n" + "".join(" " * depth + "a:\n" for depth in range(400)),
        "line 51, .*a.a.*: nested more than 50",
    ),
    ("- " * 10_000, "line 1, .*: nested more than 50 levels deep"),
    ("a: &a [x]\nb: {c: &b [*a, *b]}", "line 2, column 16: b.c.1: contains itself"),
    ("x" * 400_000, "longer than 300,000 characters"),
    (
        "a:\n  seed: " + "9" * 5_000,
        "line 2: a.seed: number of 5,000 characters; write at most 40, or quote it",
    ),
    ("seed: 0x" + "f" * 50_000, "line 1: seed: number of 50,002 characters"),
    ("seed: " + "9" * 5_000 + ".0", "line 1: seed: number of 5,002 characters"),
    ("seed: 1" + ":59" * 3_000, "line 1: seed: number of 9,001 characters"),
    ("seed: 1" + ":59" * 3_000 + ".5", "line 1: seed: number of 9,003 characters"),
]


@pytest.mark.parametrize(("text", "message"), LARGE, ids=range(len(LARGE)))
def test_bombs_are_refused_by_place_with_bounded_work(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    num_events = 0  # calls and returns of functions: the same on every machine

    def count(*_: object) -> None:
        nonlocal num_events
        num_events += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with pytest.raises(ConfigError, match=message) as in_file:
            read_yaml_mapping(path, "mapping", "", "")
    finally:
        sys.setprofile(before)
    assert num_events < MAX_EVENTS
    with pytest.raises(ConfigError, match=message) as in_override:
        apply_override({}, f"a.b={text}")
    assert max(len(str(error.value)) for error in (in_file, in_override)) < 500


MISREAD = [
    (r'a: {b: "\UFFFFFFFF"}', r"line 1, column 11: a: number out of range; the last character is"),
    ('\n"\\U00110000": 1', r"line 2, column 4: .*number out of range"),
    ("%YAML " + "1" * 5000 + ".1\n---\na: 1", "line 1, column 7: number out of range"),
    (r'a: ["\ud83d\ude00"]', r"line 1: a.0: half of a character .*; write it whole, such as .U0001F600"),
    (r'"\ud83d": 1', r"line 1: .*: half of a character"),
    ("a: {0x1F: b}", "line 1: a.0x1F: YAML reads the key 0x1F as 31; write 31, or quote it to keep the text"),
    ("a: {1_0: b}", "line 1: a.1_0: YAML reads the key 1_0 as 10; write 10"),
    (
        "a: {b: 010}",
        "line 1: a.b: YAML reads 010 as the octal number 8; write 8, or quote it to keep the text",
    ),
    ("a: -0_17", "line 1: a: YAML reads -0_17 as the octal number -15; write -15, or quote"),
    ("a: [x, 12:30]", "line 1: a.1: YAML reads 12:30 to base 60, as 750; write 750, or quote"),
    ("\na: 2026-02-30", "line 2: a: 2026-02-30 is not a date of the calendar; correct it, or quote"),
    ("a: 2026-02-10 25:61:00", "line 1: a: 2026-02-10 25:61:00 is not a date of the calendar"),
    ("2026-02-30: x", "line 1: 2026-02-30: 2026-02-30 is not a date of the calendar"),
    ("a: !!int x", "line 1: a: x is not a whole number"),
    ("a: !!bool x", "line 1: a: x is not true or false"),
    ("a: !!timestamp x", "line 1: a: x is not a date of the calendar"),
    ("a: !!python/name:os.system x", "line 1: a: could not determine a constructor .*; correct it"),
    ("a: !x {b: 1}", "line 1, column 4: a: could not determine a constructor"),
    ("a: {<<: 3}", "line 1, column 9: a.<<: expected a mapping or list of mappings for merging"),
    ("a: {[b]: 1}", "line 1, column 5: a.\\?: found unhashable key"),
    ("a: 1\nb: \0", "line 2: character 0x00 is not allowed"),
]


@pytest.mark.parametrize(("text", "message"), MISREAD)
def test_value_that_yaml_would_misread_is_refused_by_key(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_yaml(text)


def test_numbers_and_dates_of_a_config_are_read() -> None:
    text = "[0, -1, 0.5, 1e-4, 1.0e-4, 0x1F, 1_000, 08, '010', '12:30', 2026-02-28, 18446744073709551615]"
    expected = [0, -1, 0.5, "1e-4", 1e-4, 31, 1000, "08", "010", "12:30", date(2026, 2, 28), 2**64 - 1]
    assert parse_yaml(text) == expected


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
