"""Model FLOP utilization (MFU) of training on a GPU.

    python -m tests.bench.bench_mfu [--steps N]

Needs a GPU of at least 40 GB, and only torch, transformers and pydantic. The model is a Llama of 1.2
billion parameters (16 layers of width 2048) with random bfloat16 weights, MTL-LoRA on q, k, v, o, four
tasks, and rows of 64 tokens. A step is forward, backward and AdamW.

MFU is the work of the frozen matrices, 4 operations per parameter and token, over a measured bfloat16
product of 8192 x 8192; recomputation does not count. Setups run in turn; medians of steps count. Also
prints the shares of GPU time by kind of kernel, and the share in which it waits for Python. The last line
is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaModel

from models.adapters.lora import LoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import Backbone
from models.config import BackboneConfig, ModelConfig
from models.losses import row_losses
from models.relevance import build_model
from models.training.compilation import compile_layers
from models.training.flat_parameters import FlatModel
from pipeline.config.training import OptimizerConfig
from pipeline.runtime.flops import training_flops_per_token
from pipeline.runtime.timing import measure_matmul_peak, synchronize
from pipeline.training.optimizer import build_optimizer

SHAPE = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
}
ROW_TOKENS, NUM_TASKS, WARM_STEPS = 64, 4, 3
METHODS = {"mtl_lora": MTLLoRAConfig(), "lora": LoRAConfig(rank=15, lora_alpha=30)}
KERNEL_KINDS = {  # words in kernel names; the first match counts
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk"),
    "attention": ("flash", "fmha", "softmax", "cudnn", "sdpa"),
    "optimizer": ("adam", "multi_tensor"),
    "copies and casts": ("copy", "memcpy", "memset", "cat"),
}


class RandomBackbone(Backbone):
    """Trunk of random weights, without an answer direction."""

    def answer_direction(self) -> None:
        return None


def random_backbone(shape: dict[str, int], device: torch.device) -> RandomBackbone:
    """Return a Llama of this shape with random bfloat16 weights on a device."""
    with device:
        config = LlamaConfig(vocab_size=32_000, attn_implementation="sdpa", **shape)
        trunk = LlamaModel(config).to(torch.bfloat16).requires_grad_(False)
    return RandomBackbone(trunk, Path(), "", shape["hidden_size"], "last", torch.bfloat16)


class Setup:
    """One training setup: method, rows per pass, with or without recomputation and compiled layers."""

    def __init__(
        self, method: str, rows: int, checkpointing: bool, compiled: bool, shape: dict[str, int]
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = random_backbone(shape, self.device)
        config = ModelConfig(BackboneConfig(), METHODS[method], (4,) * NUM_TASKS)
        model = build_model(config, backbone, 0).to(self.device).train()
        self.flops = training_flops_per_token(model)
        if checkpointing:
            model.enable_gradient_checkpointing()
        if compiled:
            compile_layers(model)
        self.model = FlatModel(model)
        self.optimizer = build_optimizer(self.model, OptimizerConfig())
        self.ids_BS = torch.randint(0, 32_000, (rows, ROW_TOKENS), device=self.device)
        self.mask_BS = torch.ones_like(self.ids_BS)
        number_B = torch.arange(rows, device=self.device)
        self.task_B, self.label_B = number_B % NUM_TASKS, number_B % 3
        self.relevant_from_B = torch.full_like(number_B, 2)

    def step(self) -> None:
        """Run forward, backward, clipping and AdamW."""
        loss_B = row_losses(
            self.model(self.ids_BS, self.mask_BS, self.task_B), self.label_B, self.relevant_from_B
        )
        loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.trainable_state().values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step_seconds(self, steps: int) -> float:
        """Return the median seconds of a step."""
        times = []
        for _ in range(WARM_STEPS + steps):
            synchronize(self.device)
            started_s = time.perf_counter()
            self.step()
            synchronize(self.device)
            times.append(time.perf_counter() - started_s)
        return statistics.median(times[WARM_STEPS:])

    def time_shares(self, step_s: float) -> dict[str, float]:
        """Return the shares of a step by kind of kernel; time without a kernel is "waiting for Python"."""
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            self.step()
            torch.cuda.synchronize()
        shares: dict[str, float] = {}
        for event in profiled.key_averages():
            name = event.key.lower()
            kind = next(
                (kind for kind, words in KERNEL_KINDS.items() if any(word in name for word in words)),
                "elementwise and the rest",
            )
            shares[kind] = shares.get(kind, 0.0) + event.self_device_time_total / 1e6 / step_s
        return {**shares, "waiting for Python": max(0.0, 1 - sum(shares.values()))}


def measure(
    settings: tuple[str, int, bool, bool], steps: int, peak: float, shape: dict[str, int]
) -> dict[str, Any]:
    """Measure one setup; its memory is freed before the next."""
    method, rows, checkpointing, compiled = settings
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    about = {
        "method": method,
        "tokens a pass": rows * ROW_TOKENS,
        "recomputed": checkpointing,
        "compiled": compiled,
    }
    try:
        setup = Setup(method, rows, checkpointing, compiled, shape)
        step_s = setup.step_seconds(steps)
    except torch.OutOfMemoryError:
        return {**about, "mfu": None}
    found = {
        "tokens_per_s": rows * ROW_TOKENS / step_s,
        "mfu": rows * ROW_TOKENS / step_s * setup.flops / peak,
    }
    found |= {"step_s": step_s, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {
        **about,
        **found,
        "shares": {kind: round(share, 3) for kind, share in setup.time_shares(step_s).items()},
    }


def main() -> None:
    """Measure all setups in turn."""
    parser = argparse.ArgumentParser(description="MFU of training on a GPU")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer for a quick try"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 512, 1024], help="rows per pass")
    parser.add_argument(
        "--quick", action="store_true", help="skip compiled layers, which take a minute to compile"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU found; this bench measures one")
    shape = {**SHAPE, "num_hidden_layers": arguments.layers}
    peak = measure_matmul_peak(torch.device("cuda"), torch.bfloat16)
    print(
        (
            f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in a product of 8192 x 8192 in "
            "bfloat16"
        ),
        flush=True,
    )
    setups = [
        ("mtl_lora", rows, recomputed, compiled)
        for compiled in (False, True)
        for rows in arguments.rows
        for recomputed in (False, True)
    ]
    setups.insert(1, ("lora", arguments.rows[-1], False, False))
    found = []
    for settings in setups:
        _, rows, _, compiled = settings
        if compiled and (arguments.quick or rows != arguments.rows[-2:][0]):
            continue
        found.append(measure(settings, arguments.steps, peak, shape))
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"peak_tflops": peak / 1e12, "ways": found}))


if __name__ == "__main__":
    main()
