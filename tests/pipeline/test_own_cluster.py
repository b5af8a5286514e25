"""What Ray Train is spared on a cluster of one command. That a killed controller is replaced there is tested under tests/failures."""

import importlib
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.own_cluster import free_places, go_without_sharing


def test_no_actor_asks_for_machines_or_frees_places_and_all_else_is_ray_s_own() -> None:
    from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy

    scaling = ScalingConfig(num_workers=2)
    of_ray: Any = TorchTrainer(lambda: None, scaling_config=scaling)
    before, given = [type(one).__name__ for one in of_ray._create_default_callbacks()], []
    assert "PlacementGroupCleanerCallback" in before and "BackendSetupCallback" in before
    of_ray._initialize_and_run_controller = lambda **parts: given.append(parts) or "done"
    go_without_sharing(of_ray)
    after = [type(one).__name__ for one in of_ray._create_default_callbacks()]
    assert after == [kind for kind in before if kind != "PlacementGroupCleanerCallback"]

    policy = create_scaling_policy(scaling)
    assert of_ray._initialize_and_run_controller(scaling_policy=policy, train_run_context="of the run") == "done"
    assert given == [{"scaling_policy": policy, "train_run_context": "of the run"}]
    policy.after_controller_start(None)  # would reach for the actor, as the decisions would
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    policy.make_decision_for_running_worker_group(None, None)
    policy._cancel_resource_request()
    assert policy._coordinator_client is None


def test_all_places_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[Any] = []
    held = ["0123456789abcdef0123456789abcdef0a00", "ffffffffffffffffffffffffffffffff0a00"]
    places = importlib.import_module("ray.util.placement_group")  # ray.util has a function of that name
    monkeypatch.setattr(places, "placement_group_table", lambda: dict.fromkeys(held, {"state": "CREATED"}))
    monkeypatch.setattr(places, "remove_placement_group", lambda place: freed.append(place.id.hex()))
    free_places()
    assert freed == held
