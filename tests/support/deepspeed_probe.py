"""Use of every private API of DeepSpeed on one rank: `python -m tests.support.deepspeed_probe PORT`.

Prints one JSON object: what failed, by case. It is empty if DeepSpeed behaves as
pipeline/training/deepspeed_internals.py expects.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial

import torch

from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig

CASES = {
    "zero-0": DeepSpeedConfig(zero_stage=0),
    "zero-1": DeepSpeedConfig(zero_stage=1),
    "zero-2": DeepSpeedConfig(zero_stage=2),
    "zero-2 offload": DeepSpeedConfig(zero_stage=2, offload_optimizer=True),
    "zero-3": DeepSpeedConfig(zero_stage=3),
    "zero-3 offload": DeepSpeedConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True),
}
SIZES = {"first": 5, "second": 3}  # of two parameter groups


class TwoGroups(torch.nn.Module):
    """A model whose gradients are known: the loss is the sum of factor * parameter."""

    def __init__(self) -> None:
        super().__init__()
        for number, (name, size) in enumerate(SIZES.items()):
            self.register_parameter(name, torch.nn.Parameter(torch.arange(size) + 10.0 * number))

    def forward(self) -> torch.Tensor:
        """Return the loss."""
        return sum((factor_of(name) * self.get_parameter(name)).sum() for name in SIZES)  # type: ignore[return-value]


def factor_of(name: str) -> torch.Tensor:
    """Return the gradient of a parameter."""
    return torch.arange(SIZES[name]) + (1.0 if name == "first" else 100.0)


def check_case(config: DeepSpeedConfig) -> None:
    """Take a step and compare what the private APIs return with what is known."""
    import deepspeed

    from pipeline.training import deepspeed_internals as internals
    from pipeline.training.deepspeed_engine import deepspeed_config

    internals.use_default_process_group()
    model = TwoGroups()
    groups = [{"params": [model.get_parameter(name)], "name": name} for name in SIZES]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        optimizer=torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0),
        config=deepspeed_config(config, TrainingConfig(num_workers=1), OptimizerConfig()),
    )
    parameters = {name: engine.module.get_parameter(name) for name in SIZES}
    for parameter in parameters.values():
        assert internals.is_partitioned(parameter) == (config.zero_stage == 3), "is_partitioned"
    engine.backward(engine())
    squares = [0.0, 0.0]
    for index, gradient in internals.local_gradients(engine):
        squares[index] += float(gradient.double().square().sum())
    expected = [float(factor_of(name).double().square().sum()) for name in SIZES]
    assert squares == expected, f"local_gradients: {squares} instead of {expected}"
    engine.step()
    state = internals.inner_optimizer(engine).state
    for name, parameter in parameters.items():
        part = internals.local_slice(engine, parameter)
        assert (part.start, part.count) == (0, SIZES[name]), f"local_slice of {name}: {part}"
        moment = state[part.owner]["exp_avg"].flatten().narrow(0, part.offset, part.count)
        ratio = moment / factor_of(name)  # gradients are clipped by a common factor
        assert (ratio > 0).all() and torch.allclose(ratio, ratio[0].expand(part.count)), f"state of {name}"
        weights = part.owner.flatten().narrow(0, part.offset, part.count)
        assert torch.equal(weights.float().cpu(), torch.arange(SIZES[name]) + 10.0 * (name == "second")), name
    if config.zero_stage in (1, 2):
        with torch.no_grad():
            parameters["first"].fill_(7.0)
        internals.refresh_master_weights(engine)
        part = internals.local_slice(engine, parameters["first"])
        weights = part.owner.flatten().narrow(0, part.offset, part.count)
        assert bool((weights == 7).all()), "refresh_master_weights"
    engine.destroy()


def failure_of(check: Callable[[], object]) -> str | None:
    """Return what a check raised."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def check_groups() -> None:
    """Check that DeepSpeed uses the default process group and no shared-memory collectives."""
    import deepspeed

    assert deepspeed.utils.groups._clone_world_group() is torch.distributed.group.WORLD, "_WORLD_GROUP"
    assert deepspeed.comm.comm.cdb.shm_comm_op is None, "__compatible_ops__"


def main() -> None:
    """Check all cases."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": sys.argv[1],
    }
    import deepspeed

    from pipeline.training.deepspeed_internals import (
        disable_shared_memory_collectives,
        use_default_process_group,
    )

    failures = {"disable_shared_memory_collectives": failure_of(disable_shared_memory_collectives)}
    deepspeed.init_distributed("gloo")
    failures["use_default_process_group"] = failure_of(use_default_process_group)
    failures |= {name: failure_of(partial(check_case, config)) for name, config in CASES.items()}
    failures["process group"] = failure_of(check_groups)
    print(json.dumps({name: failure for name, failure in failures.items() if failure}), flush=True)
    os._exit(0)  # gloo's threads may still run


if __name__ == "__main__":
    main()
