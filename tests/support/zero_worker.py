"""One of two ranks that train every adapter method at every ZeRO stage: `python -m tests.support.zero_worker
RANK PORT TRUNK_DIR OUT_DIR`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.lora import LoRAConfig
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.backbone import load_backbone
from models.config import AdapterConfig, BackboneConfig, ModelConfig
from models.relevance import RelevanceModel, build_model
from models.training.flat_parameters import FlatModel
from pipeline.config.training import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from pipeline.training.optimizer import build_optimizer

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2,
    head_learning_rate=2e-2,
    mixture_learning_rate=3e-2,
    weight_decay=0.05,
    gradient_clipping=0.5,
)
STEPS = 3
STAGES = (0, 1, 2, 3)
METHODS: dict[str, AdapterConfig] = {
    "mtl_lora": MTLLoRAConfig(rank=4),
    "mtl_lora-last": MTLLoRAConfig(rank=4, task_layers=1, transform="diagonal"),
    "lora": LoRAConfig(rank=4),
    "per_task_lora": PerTaskLoRAConfig(rank=2),
    "multi_lora": MultiLoRAConfig(rank=2),
    "moe_lora": MoELoRAConfig(rank=4),
    "hydra_lora": HydraLoRAConfig(rank=4),
    "dora": DoRAConfig(rank=4),
    "mtlora": MTLoRAConfig(rank=4, task_rank=2),
}


def fresh_model(trunk_dir: Path, method: str) -> RelevanceModel:
    """A float32 model that has left its start, so that every tensor gets a gradient."""
    backbone = BackboneConfig(source=str(trunk_dir), dtype="float32")
    model = build_model(ModelConfig(backbone, METHODS[method], (2, 3, 5)), load_backbone(backbone), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable_state().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eight rows; of the three tasks the last is absent from steps after the first."""
    generator = torch.Generator().manual_seed(100 + step)
    ids_BS = torch.randint(2, 300, (8, 6), generator=generator)
    return ids_BS, torch.ones_like(ids_BS), torch.arange(8) % (3 if step == 0 else 2)


def loss_of(logits_BC: torch.Tensor) -> torch.Tensor:
    return logits_BC[:, :2].square().sum() / 8


def train_plainly(model: RelevanceModel) -> list[dict[str, float]]:
    """The reference: one process, torch alone. Returns the gradient norms of each step by group."""
    optimizer = build_optimizer(model, OPTIMIZER)
    norms = []
    for step in range(STEPS):
        set_rates(optimizer)
        optimizer.zero_grad()
        loss_of(model(*batch_of(step))).backward()
        groups = {
            group["name"]: [p.grad for p in group["params"] if p.grad is not None]
            for group in optimizer.param_groups
        }
        norms.append(
            {name: float(torch.cat([g.flatten() for g in found]).norm()) for name, found in groups.items()}
        )
        # DeepSpeed's clipping: by the norm of all gradients, with 1e-6 in the divisor
        torch.nn.utils.clip_grad_norm_(list(model.trainable_state().values()), OPTIMIZER.gradient_clipping)
        optimizer.step()
    return norms


def set_rates(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_rate"]


def train_with_deepspeed(model: FlatModel, stage: int, rank: int) -> dict[str, Any]:
    """Losses and gradient norms of each step, as this rank sees them; and the trained tensors."""
    import deepspeed

    from pipeline.training.checkpoint import gather_trainables
    from pipeline.training.deepspeed_engine import deepspeed_config, gradient_norms
    from pipeline.training.deepspeed_internals import use_default_process_group

    training = TrainingConfig(num_workers=2, batch_rows=8)
    use_default_process_group()  # as training does
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.trainable_state().values()),
        optimizer=build_optimizer(model, OPTIMIZER),
        config=deepspeed_config(DeepSpeedConfig(zero_stage=stage), training, OPTIMIZER),
    )
    seen: dict[str, Any] = {"logits": [], "norms": [], "global_norms": []}
    for step in range(STEPS):
        set_rates(engine.optimizer)
        ids_BS, mask_BS, task_B = (tensor[rank * 4 : rank * 4 + 4] for tensor in batch_of(step))
        logits_BC = engine(ids_BS, mask_BS, task_B)
        engine.backward(loss_of(logits_BC) * 2)
        seen["norms"].append(gradient_norms(engine))
        engine.step()
        seen["logits"].append(logits_BC[:, :2].tolist())
        # DeepSpeed keeps none at stage 0
        seen["global_norms"].append(float(engine.get_global_grad_norm()) if stage else None)
    seen["tensors"] = gather_trainables(engine)
    engine.destroy()
    return seen


def main() -> None:
    """Write OUT_DIR/<method>-<stage>-<rank>.json, and the trained tensors as rank 0 gathers them."""
    rank, port, trunk_dir, out_dir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    torch.set_num_threads(1)
    import deepspeed
    from safetensors.torch import save_file

    from pipeline.training.deepspeed_internals import disable_shared_memory_collectives

    disable_shared_memory_collectives()
    deepspeed.init_distributed("gloo")
    for method in METHODS:
        for stage in STAGES:
            seen = train_with_deepspeed(FlatModel(fresh_model(trunk_dir, method)), stage, rank)
            tensors = seen.pop("tensors")
            (out_dir / f"{method}-{stage}-{rank}.json").write_text(json.dumps(seen))
            if rank == 0:
                save_file(tensors, out_dir / f"{method}-{stage}.safetensors")
    # a rank that leaves while the other's gloo threads still run can bring it down
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
