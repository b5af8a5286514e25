"""A task block is accepted only if a model can be trained with it."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.tasks import Task, check_known_task
from pipeline.errors import ConfigError
from pipeline.schema import MAX_LABELS

BLOCK: dict[str, Any] = {
    "name": "search",
    "labels": ["bad", "fair", "good"],
    "relevant_from": 1,
    "template": "Page: {landing_page}\nQuery: {query}\nAd: {ad_title}",
}


def task(**changes: Any) -> Task:
    return Task.model_validate({**BLOCK, **changes})


def test_ad_columns_are_in_template_order() -> None:
    assert task().labels == ("bad", "fair", "good")
    assert task().ad_columns == ("landing_page", "ad_title")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "../x"}, "task '../x' is not a valid name"),
    ({"name": "Search"}, "is not a valid name"),
    ({"labels": ["only"]}, "at least 2"),
    ({"labels": [f"l{n}" for n in range(MAX_LABELS + 1)]}, f"at most {MAX_LABELS}"),
    ({"labels": ["bad", "bad", "good"]}, "repeat a name"),
    ({"relevant_from": 0}, r"must lie in 1\.\.2"),
    ({"relevant_from": 3}, r"must lie in 1\.\.2"),
    ({"template": "{query} {ad_headline}"}, "unknown columns: ad_headline; known columns: query, ad_title"),
    ({"template": "{query} {}"}, "known columns: query"),
    ({"template": "{query} {ad_title.__class__}"}, "known columns: query"),
    ({"template": "{query} {label}"}, "unknown columns: label"),
    ({"template": "{query} and nothing else"}, "at least one column of the ad"),
    ({"template": "{ad_title} without the search"}, "must name {query} and"),
    ({"template": "{query} {query} {ad_title}"}, "must name {query} and"),
    ({"template": "{query} {ad_title} {ad_title}"}, "each exactly once"),
    ({"template": "{query!r} {ad_title}"}, "write the column alone"),
    ({"template": "{query:>9} {ad_title}"}, "write the column alone"),
    ({"template": "{query} {ad_title"}, "expected '}'"),
    ({"sampling_weight": 0}, "greater than 0"),
    ({"sampling_weight": float("inf")}, "finite"),
    ({"sampling_weight": float("nan")}, "finite|greater than 0"),
    ({"target_precision": 1}, "less than 1"),
    ({"colour": "red"}, "Extra inputs"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes)[:50] for changes, _ in REFUSED])
def test_invalid_block_is_refused_with_its_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(**changes)


def test_doubled_braces_are_text() -> None:
    assert task(template="{{query}} {query} {ad_title}").ad_columns == ("ad_title",)


def test_task_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        task().relevant_from = 2  # type: ignore[misc]


def test_unknown_task_is_refused_with_the_known_ones() -> None:
    tasks = [task(), task(name="shop")]
    assert check_known_task("shop", tasks, "rows") is tasks[1]
    with pytest.raises(
        ConfigError, match="task 'sarch' in /data is not configured; configured: search, shop"
    ):
        check_known_task("sarch", tasks, "/data")
