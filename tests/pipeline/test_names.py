"""A name passes exactly when it obeys the rule."""

import random
import string
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.names import check_name, is_bucket

PLAIN = string.ascii_lowercase + string.digits
HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\0",
    "\0",
    "%2e%2e",
    "%2e%2e%2f",
    "a" * 64,
    "a" * 300,
    "CON",
    "Nul",
    "-rf",
    "_a",
    "a b",
    "a\n",
    "\na",
    "a.b",
    "a\\b",
    "c:",
    "~",
    "$HOME",
    "a;b",
    "раураl",
    "аbc",
    "ａｂｃ",
    "a\u200b",
    "\u202eabc",
    "é",
    "ⅷ",
    "１",
    "a\u0301",
    "ſ",
    "K",
    "İ",
]
HOSTILE_CHARACTERS = PLAIN + "_-" * 6 + "./\\\0 %~ABCZ\n\tа\u0430ａ１é\u0301\u200b\u202e$;:"


def random_names(count: int) -> list[str]:
    """Return names of which half have only plain characters; some lengths are at the limit."""
    draw = random.Random(0)
    pools = (PLAIN + "_-", HOSTILE_CHARACTERS)
    return [
        "".join(draw.choices(pools[n % 2], k=draw.choice((1, 2, 3, 8, 62, 63, 64, 300))))
        for n in range(count)
    ]


def obeys_the_rule(name: str) -> bool:
    """Apply the name rule without a regular expression."""
    return 1 <= len(name) <= 63 and name[0] in PLAIN and all(c in PLAIN + "_-" for c in name)


def test_name_passes_exactly_when_the_rule_allows_it() -> None:
    accepted = 0
    for name in [*HOSTILE_NAMES, *random_names(10_000)]:
        if obeys_the_rule(name):
            accepted += 1
            assert check_name(name, "run") == name
            assert Path(name).parts == (name,)
        else:
            with pytest.raises(ConfigError):
                check_name(name, "run")
    assert 2_000 < accepted < 9_000


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ConfigError, match="^model .* is not a valid name; use 1 to 63 of a-z, 0-9, _ and -"):
        check_name(name, "model")


def test_only_s3_urls_are_buckets() -> None:
    assert is_bucket("s3://b/p") and not is_bucket("/data/s3://b") and not is_bucket(Path("b"))
