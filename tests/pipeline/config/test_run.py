"""The page of all settings matches the config classes."""

from tests.support.settings_page import PAGE, build_page


def test_settings_page_matches_the_config_classes() -> None:
    assert PAGE.read_text() == build_page(), "run python -m tests.support.settings_page"


def test_every_setting_has_a_description() -> None:
    empty = [line for line in build_page().splitlines() if line.endswith("|  |")]
    assert empty == []
