"""Private parts of Ray that the code changes are there, and nothing else is changed."""

from typing import Any

from pipeline.runtime.ray_internals import go_without


def test_ray_keeps_no_handler_of_ctrl_c_and_all_its_callbacks() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer: Any = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    assert callable(trainer._register_sigint_handler), "Ray has renamed it: see ray_internals.py"
    kinds = [type(one) for one in trainer._create_default_callbacks()]
    go_without(trainer)
    assert trainer._register_sigint_handler(None) is None
    assert [type(one) for one in trainer._create_default_callbacks()] == kinds
