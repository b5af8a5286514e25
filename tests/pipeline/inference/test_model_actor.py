"""An actor repeats a unit a few times, names its rows, and says whether the unit or a setting is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import build_config
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.inference.attempts import MAX_ATTEMPTS, UnitAttempts
from pipeline.inference.model_actor import (
    ModelActor,
    ModelActorSettings,
    UnitFailure,
    UnitWork,
    failure_error,
)
from pipeline.inference.predictor import BundleModel, build_predictor
from tests.support.bundles import write_trained_bundle
from tests.support.planted import planted_config

Build = Callable[..., ModelActor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> BundleModel:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    config = build_config(planted_config(folder.parent, str(tiny_llama)), "test")
    return BundleModel(folder, write_trained_bundle(folder, build_predictor(config), config))


@pytest.fixture
def build(model: BundleModel, tmp_path: Path, tiny_llama: Path) -> Build:
    """Function that builds an actor with changed settings; all share their notes about attempts."""
    scoring = build_config(
        planted_config(tmp_path, str(tiny_llama), scoring={"threads_per_actor": 1}), "test"
    ).scoring

    def build_actor(check: Any = lambda predictor, bundle: None, **changes: Any) -> ModelActor:
        settings = ModelActorSettings(model, scoring.model_copy(update=changes), tmp_path)
        return ModelActor(settings, check)

    return build_actor


def work(do: Any, found: str | None = None) -> UnitWork[str]:
    return UnitWork("a-unit", lambda: found, lambda: None, do)


def must_not_run(attempts: UnitAttempts) -> str:
    raise AssertionError("the unit is done already")


def test_done_unit_is_found_and_not_attempted(build: Build, tmp_path: Path) -> None:
    assert build().work_on(work(must_not_run, found="done before")) == "done before"
    assert UnitAttempts(tmp_path, "a-unit").count() == 0


def test_error_is_tried_again_row_by_row_and_then_names_the_row(build: Build) -> None:
    tried = []

    def fail(attempts: UnitAttempts) -> str:
        import numpy as np

        tried.append(attempts.retry_candidates())
        rows = [0, 1] if len(tried) == 1 else [1]
        attempts.record_in_flight(np.array(rows), [f"row-{row}" for row in rows])
        raise ValueError("broken")

    failure = build().work_on(work(fail))
    assert tried == [[], [0, 1]]
    assert failure == UnitFailure("ValueError: broken, while scoring rows row-1")


def test_unit_of_many_dead_processes_is_not_begun_again(build: Build, tmp_path: Path) -> None:
    attempts = UnitAttempts(tmp_path, "a-unit")
    for _ in range(MAX_ATTEMPTS):
        attempts.begin()  # and the process died
    failure = build().work_on(work(must_not_run))
    assert isinstance(failure, UnitFailure) and not failure.retry
    assert failure.error.startswith(f"process crashed or hung {MAX_ATTEMPTS} times, last before any row")


def test_full_disk_may_be_tried_again(build: Build) -> None:
    def fail(attempts: UnitAttempts) -> str:
        raise OSError("disk full")

    assert build().work_on(work(fail)) == UnitFailure("disk full", retry=True)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RelevanceError("it differs"), {}),
        (ConfigError("it is set wrongly"), {"is_config_error": True}),
        (DamagedInputError("it is damaged"), {"is_damaged": True}),
    ],
)
def test_actor_that_must_not_work_refuses_every_unit(
    build: Build, error: RelevanceError, kind: dict[str, bool]
) -> None:
    def check(predictor: Any, bundle: Any) -> None:
        raise error

    failure = build(check).work_on(work(must_not_run))
    expected = f"nothing was published by this actor: {error}"
    assert failure == UnitFailure(expected, **kind)


def test_actors_reserve_their_threads(build: Build) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        build(threads_per_actor=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


WRONG, SETTING, DAMAGED, LATER = (
    UnitFailure("wrong"),
    UnitFailure("setting", is_config_error=True),
    UnitFailure("damaged", is_damaged=True),
    UnitFailure("later", retry=True),
)


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ([WRONG], RelevanceError, "2 failed: wrong"),
        ([LATER, WRONG], RetryableError, "2 failed: wrong; later"),
        ([SETTING, SETTING], ConfigError, "2 failed: setting; setting"),
        ([SETTING, WRONG], RelevanceError, "2 failed: setting; wrong"),
        ([DAMAGED, DAMAGED], DamagedInputError, "2 failed: damaged; damaged"),
        ([DAMAGED, SETTING], RelevanceError, "2 failed: damaged; setting"),
        ([WRONG] * 9, RelevanceError, "2 failed: " + "; ".join(["wrong"] * 5)),
    ],
)
def test_kind_of_the_error_follows_from_all_failures(
    failures: list[UnitFailure], kind: type[RelevanceError], message: str
) -> None:
    error = failure_error(failures, "2 failed")
    assert type(error) is kind and str(error) == message
