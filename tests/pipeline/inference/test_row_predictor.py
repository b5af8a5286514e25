"""Rows are predicted once, are the model's logits in their order, and say on what they were computed."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.loading import build_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, RelevanceError, RetryableError
from pipeline.inference import model_actor, row_predictor
from pipeline.inference.actor_pool import Pool, PoolUnit
from pipeline.inference.predictor import BundleModel, Predictor, build_predictor, load_predictor
from pipeline.publishing.unit_store import read_manifests
from pipeline.schema import ROW_SCHEMA
from tests.support.bundles import write_trained_bundle
from tests.support.in_process import InProcessEngine, in_process_predictor
from tests.support.planted import planted_config, planted_rows

ROWS = 10  # of each task, in units of 4


@dataclass
class World:
    """A trained bundle, rows of its tasks, and an engine that counts."""

    config: RunConfig
    model: BundleModel
    tables: dict[str, pa.Table]
    engine: InProcessEngine

    def logits(self, **changes: Any) -> dict[str, np.ndarray]:
        """Return the logits of the rows by task."""
        actors = self.config.evaluation_actors.model_copy(update=changes)
        predictor = in_process_predictor(self.config, self.engine)
        return predictor.logits(self.model, {"test": self.tables}, actors)["test"]

    def num_predicted(self, **changes: Any) -> int:
        """Return the number of units that another call predicts."""
        before = len(self.engine.unit_ids)
        self.logits(**changes)
        return len(self.engine.unit_ids) - before

    def store(self) -> Path:
        """Return the folder of the only model's predictions."""
        (folder,) = (self.config.run_dir / "predictions").iterdir()
        return folder


def change_text(table: pa.Table, row: int) -> pa.Table:
    queries = table.column("query").to_pylist()
    queries[row] += " again"
    index = table.schema.get_field_index("query")
    return table.set_column(index, table.schema.field("query"), pa.array(queries))


def drawn_predictor(config: RunConfig) -> Predictor:
    """Return a predictor whose trained tensors are random, unlike those of an untrained one."""
    predictor = build_predictor(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in predictor.model.trainable_state().values():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return predictor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, str, Path]:
    root = tmp_path_factory.mktemp("trained")
    config = build_config(planted_config(root, str(tiny_llama)), "test")
    return root / "bundle", write_trained_bundle(root / "bundle", drawn_predictor(config), config), tiny_llama


@pytest.fixture
def world(tmp_path: Path, trained: tuple[Path, str, Path], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(row_predictor, "UNIT_ROWS", 4)
    folder, sha256, tiny_llama = trained
    config = build_config(planted_config(tmp_path, str(tiny_llama), scoring={"threads_per_actor": 1}), "test")
    tables = {
        name: pa.Table.from_pylist(planted_rows(name, ROWS, 3), ROW_SCHEMA) for name in ("two", "three")
    }
    return World(config, BundleModel(folder, sha256), tables, InProcessEngine())


def test_logits_are_those_of_the_model_in_the_order_of_the_rows(world: World) -> None:
    found = world.logits()
    predictor, _ = load_predictor(world.model.folder)
    for task in predictor.tasks:
        encoded = predictor.encode({task.name: world.tables[task.name]})
        expected_NC = predictor.logits(encoded, 4_096)[:, : len(task.labels)]
        np.testing.assert_allclose(found[task.name], expected_NC, atol=1e-5)
        assert len(np.unique(found[task.name].round(6), axis=0)) > ROWS / 2, "rows are told apart"
    assert len(world.engine.unit_ids) == 6  # 3 of each task


def test_manifests_say_on_what_the_rows_were_predicted(world: World) -> None:
    world.logits()
    manifests = read_manifests(world.store(), lambda manifest: manifest)
    found = {(one["task"], one["rows_name"], one["device"], one["threads"]) for one in manifests}
    assert found == {("two", "test", "cpu", 1), ("three", "test", "cpu", 1)} and len(manifests) == 6
    assert {path.name for path in world.store().iterdir()} == {"manifests", "test", "attempts"}
    assert not any((world.store() / "attempts").iterdir())


def test_only_what_changed_is_predicted_again(world: World) -> None:
    first = world.logits()
    again = world.logits()
    assert all((first[task] == again[task]).all() for task in first)
    assert world.num_predicted() == 0
    world.tables["two"] = change_text(world.tables["two"], 5)
    assert world.num_predicted() == 1
    assert world.num_predicted(batch_tokens=64) == 6
    assert world.num_predicted() == 0


def test_versions_that_differ_in_calibration_share_predictions(world: World) -> None:
    world.logits()
    bundle = read_bundle(world.model.folder)
    calibration = {
        name: {**one, "temperature": 3.0} for name, one in bundle.description["calibration"].items()
    }
    folder = world.config.run_dir / "calibrated"
    tasks = [{**task, "target_precision": 0.7} for task in bundle.description["tasks"]]
    description = {**bundle.description, "calibration": calibration, "tasks": tasks}
    sha256 = write_bundle(folder, description, bundle.tensors, bundle.tokenizer_dir)
    world.model = BundleModel(folder, sha256)
    assert world.num_predicted() == 0
    changed = {name: tensor * 1.001 for name, tensor in bundle.tensors.items()}
    world.model = BundleModel(folder, write_bundle(folder, description, changed, bundle.tokenizer_dir))
    assert world.num_predicted() == 6


@dataclass
class TwoActors(InProcessEngine):
    """Engine of two actors that take the units in turn, the second one first."""

    def do_units(
        self, pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[..., Any]
    ) -> Iterator[dict[str, Any]]:
        actors = [pool.actor(pool.settings) for _ in range(2)]
        for number, unit in enumerate(reversed(units.values())):
            yield actors[number % 2].do_unit(unit)


def test_two_actors_give_the_bits_of_one(world: World) -> None:
    expected = world.logits()
    world.config = world.config.model_copy(update={"name": "two-actors"})
    world.engine = TwoActors()
    found = world.logits()
    assert all((found[task] == expected[task]).all() for task in expected)


def test_untrained_model_is_another_model(world: World) -> None:
    trained = world.logits()
    world.model = BundleModel(world.model.folder, world.model.sha256, is_trained=False)
    untrained = world.logits()
    assert np.abs(trained["two"] - untrained["two"]).max() > 1e-3
    config = world.config
    expected = build_predictor(config)
    encoded = expected.encode({"three": world.tables["three"]})
    np.testing.assert_allclose(untrained["three"], expected.logits(encoded, 4_096)[:, :3], atol=1e-5)


class KilledError(Exception):
    """End of a command."""


@dataclass
class _KilledAfterTwo(InProcessEngine):
    def do_units(
        self, pool: Pool, units: Mapping[str, PoolUnit], give_up: Callable[..., Any]
    ) -> Iterator[dict[str, Any]]:
        for number, result in enumerate(super().do_units(pool, units, give_up)):
            if number == 2:
                raise KilledError
            yield result


def test_killed_prediction_goes_on_where_it_stopped(world: World) -> None:
    expected = world.logits()
    world.config = world.config.model_copy(update={"name": "killed"})
    counting, world.engine = world.engine, _KilledAfterTwo()
    with pytest.raises(KilledError):
        world.logits()
    world.engine = counting
    assert world.num_predicted() == 3  # the third was published before its command ended
    found = world.logits()
    assert all((found[task] == expected[task]).all() for task in expected)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("broken"), RelevanceError, "ValueError: broken, while scoring rows"),
        (OSError("disk full"), RetryableError, "disk full"),
        (ConfigError("no such thing; set it"), RelevanceError, "no such thing"),
    ],
)
def test_failed_rows_end_the_command_and_the_others_are_published(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    poisoned = world.tables["two"].column("row_id")[6].as_py()
    run_plan = model_actor.ModelActor.run_plan

    def fail(actor: Any, plan: Any, row_id_N: Any, attempts: Any, **_: Any) -> Any:
        def before_step(step: Any) -> None:
            if poisoned in row_id_N.take(pa.array(step.rows)).to_pylist():
                raise error

        return run_plan(actor, plan, row_id_N, attempts, before_step=before_step)

    with monkeypatch.context() as patched:
        patched.setattr(model_actor.ModelActor, "run_plan", fail)
        with pytest.raises(kind, match="1 of 6 work units were not predicted") as caught:
            world.logits()
    assert message in str(caught.value) and type(caught.value) is kind
    assert world.num_predicted() == 1


def test_actor_that_cannot_work_is_a_wrong_setting(world: World) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"use_gpu is true .* finds no GPU"):
        world.logits(use_gpu=True)


def test_other_devices_and_libraries_are_other_units(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = world.config.scoring
    known = row_predictor._identity(actors)
    assert row_predictor._identity(actors.model_copy(update={"use_gpu": True})) != known
    monkeypatch.setattr(row_predictor, "version", lambda name: "another")
    assert row_predictor._identity(actors) != known


def test_bundle_altered_since_the_command_began_is_refused(world: World) -> None:
    folder = world.config.run_dir / "altered"
    shutil.copytree(world.model.folder, folder)
    world.model = BundleModel(folder, world.model.sha256)
    do_units = world.engine.do_units

    def alter(*arguments: Any) -> Any:
        (folder / "bundle.json").write_bytes(b"{}")
        return do_units(*arguments)

    world.engine.do_units = alter  # type: ignore[method-assign]
    with pytest.raises(DamagedInputError, match=r"bundle\.json does not match its sha256"):
        world.logits()


def test_no_rows_give_no_logits_and_start_no_actor(world: World) -> None:
    world.tables = {"three": world.tables["three"].slice(0, 0)}
    assert world.logits()["three"].shape == (0, 3) and not world.engine.pools


def test_damaged_predictions_are_refused_by_name(world: World) -> None:
    world.logits()
    path = next((world.store() / "test").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedInputError, match=r"does not match its manifest; delete manifests/") as caught:
        world.logits()
    manifest = str(caught.value).partition("delete ")[2].split()[0]
    (world.store() / manifest).unlink()
    assert world.num_predicted() == 1


def test_task_of_another_model_is_refused(world: World) -> None:
    world.tables["four"] = world.tables["two"]
    with pytest.raises(ConfigError, match="model has no task 'four'; its tasks: two, three"):
        world.logits()


def test_speed_is_measured_once_in_turn(world: World) -> None:
    actors = world.config.scoring
    predictor = in_process_predictor(world.config, world.engine)
    other = BundleModel(world.model.folder, world.model.sha256, is_trained=False)
    ratio = predictor.speed_ratio(world.model, other, world.tables, actors)
    assert 0.05 < ratio < 20
    assert predictor.speed_ratio(world.model, other, world.tables, actors) == ratio
    assert len(world.engine.pools) == 1
    (manifest,) = read_manifests(world.store(), lambda manifest: manifest)
    assert (manifest["rows_name"], manifest["device"], manifest["threads"]) == ("speed", "cpu", 1)
