"""Versions that `relevance register` made, by their tags."""

from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from pipeline.registry.model_versions import REQUIRED_TAGS, check_registered


@pytest.mark.parametrize("missing", sorted(REQUIRED_TAGS))
def test_version_without_one_of_its_tags_is_refused(missing: str) -> None:
    tags = dict.fromkeys(REQUIRED_TAGS, "x")
    check_registered(SimpleNamespace(version="1", name="planted", tags=tags))
    assert "data_gate" in tags, "a version without the gate's verdict must not count as passed"
    del tags[missing]
    with pytest.raises(ConfigError, match="was not made by `relevance register`"):
        check_registered(SimpleNamespace(version="1", name="planted", tags=tags))
