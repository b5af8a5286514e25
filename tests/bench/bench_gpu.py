"""Training, scoring and evaluation on a GPU.

    tests/bench/gpu.sh

A model of SmolLM2-135M's shape and a Llama of 1.2 billion parameters, with random weights in bfloat16 and
MTL-LoRA adapters for four tasks. Sections:

- step: a training step against Hugging Face's Trainer with PEFT's LoRA of as many parameters, rows of 64
  tokens, and the operations that each side launches. Our side is the step without DeepSpeed's engine.
- mfu: model FLOP utilization of the large model (bench_mfu), with compiled layers and without.
- scoring: pairs a second of one task, with merged adapters and shared prefixes.
- evaluation: largest difference of a probability between this device and float32 on the CPU.
- packing: padded rows over packed rows in seconds, by the tokens of the instruction.

Without a GPU, everything runs in tiny sizes: its numbers mean nothing. A section that fails is reported by
its error, and the exit status is 1. The last line is one JSON object.
"""

import copy
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.packing import PackedRows, pack_rows
from models.relevance import RelevanceModel
from pipeline.config.scoring import ScoringConfig
from pipeline.encoding.batches import pad_rows
from pipeline.inference.task_predictor import TaskPredictor
from pipeline.runtime.timing import measure_matmul_peak, synchronize
from tests.bench.bench_mfu import NUM_TASKS, ROW_TOKENS, SHAPE, Setup, random_backbone
from tests.bench.bench_packing import SHIPPED, draw_rows, step
from tests.bench.support.operations import Operations
from tests.bench.support.plain_sides import LORA_RANK, time_trainer
from tests.bench.support.sides import adapted_model
from tests.bench.support.timing import SEED, time_in_turn

MAX_SECONDS = 480  # no section starts after this
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of all sections."""

    small: dict[str, int]  # shape of the small model
    large: dict[str, int]
    step_rows: tuple[int, ...]
    mfu_rows: int
    pairs: int  # scored
    evaluated: int  # pairs
    packed_rows: int
    instructions: tuple[int, ...]  # tokens
    rounds: int
    compiles: (
        bool  # False on a CPU: tests of compiled layers are elsewhere, and compiling takes half a minute
    )


ON_GPU = Sizes(SMOLLM2, SHAPE, (64, 512), 512, 20_000, 128, 64, (SHIPPED, 300), 10, True)
ON_CPU = Sizes(TINY, TINY, (2,), 2, 20, 8, 4, (20,), 1, False)


def main() -> None:
    """Run all sections."""
    sizes = ON_GPU if DEVICE.type == "cuda" else ON_CPU
    started_s = time.monotonic()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "peak_tflops": round(matmul_peak() / 1e12, 3),
    }
    for name, section in SECTIONS.items():
        if time.monotonic() - started_s > MAX_SECONDS:
            found[name] = "skipped: time is up"
            continue
        print(f"{time.monotonic() - started_s:5.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            found[name] = section(sizes)
        except Exception as error:  # the other sections still count
            found[name] = f"failed: {type(error).__name__}: {error}"
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps({**found, "seconds": round(time.monotonic() - started_s, 1)}))
    if any(isinstance(result, str) and result.startswith("failed") for result in found.values()):
        sys.exit(1)


@functools.cache
def matmul_peak() -> float:
    """Return the operations per second of a large bfloat16 product on the device."""
    return measure_matmul_peak(DEVICE, torch.bfloat16)


def training_steps(sizes: Sizes) -> dict[str, Any]:
    """Compare a training step with Trainer's, by the rows of a batch."""
    found = {}
    for rows in sizes.step_rows:
        forms = {"eager": False, "compiled": True} if sizes.compiles else {"eager": False}
        ours = {
            name: Setup("mtl_lora", rows, False, compiled, sizes.small) for name, compiled in forms.items()
        }
        seconds = {name: setup.step_seconds(sizes.rounds) for name, setup in ours.items()}
        with Operations() as operations:
            ours["eager"].step()
        seconds["trainer"], trainer_operations = trainer_step(sizes, rows)
        found[str(rows)] = {
            "ms": {name: round(1000 * value, 2) for name, value in seconds.items()},
            "speed_over_trainer": {name: round(seconds["trainer"] / seconds[name], 3) for name in forms},
            "operations": {"ours": operations.total, "peft, forward and backward": trainer_operations},
        }
    return found


def trainer_step(sizes: Sizes, rows: int) -> tuple[float, int]:
    """Return the median seconds of a step of Trainer with PEFT, and its model's operations of a pass."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        LlamaConfig,
        LlamaForSequenceClassification,
        TrainingArguments,
        default_data_collator,
    )

    torch.manual_seed(SEED)
    config = LlamaConfig(vocab_size=32_000, num_labels=4, pad_token_id=0, **sizes.small)
    lora = LoraConfig(task_type="SEQ_CLS", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=LORA_TARGETS)
    model: Any = get_peft_model(LlamaForSequenceClassification(config).to(torch.bfloat16), lora)
    generator = np.random.default_rng(SEED)
    steps = 3 + sizes.rounds
    items = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * ROW_TOKENS, "labels": number % 4}
        for number, ids in enumerate(generator.integers(1, 32_000, (rows * steps, ROW_TOKENS)))
    ]
    with tempfile.TemporaryDirectory() as out_dir:
        arguments = TrainingArguments(
            out_dir,
            per_device_train_batch_size=rows,
            max_steps=steps,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=DEVICE.type == "cpu",
            disable_tqdm=True,
        )
        times = time_trainer(model, items, default_data_collator, arguments)
    batch = {name: value.to(DEVICE) for name, value in default_data_collator(items[:rows]).items()}
    with Operations() as operations:
        model(**batch).loss.backward()
    return statistics.median(np.diff(times)[2:].tolist()), operations.total


def large_model(sizes: Sizes) -> dict[str, Any]:
    """Return the MFU of the large model."""
    found = {}
    for name, compiled in {"eager": False, "compiled": True}.items():
        if compiled and not sizes.compiles:
            continue
        setup = Setup("mtl_lora", sizes.mfu_rows, False, compiled, sizes.large)
        step_s = setup.step_seconds(sizes.rounds)
        tokens_per_s = sizes.mfu_rows * ROW_TOKENS / step_s
        found[name] = {
            "tokens_per_s": round(tokens_per_s),
            "mfu": round(tokens_per_s * setup.flops / matmul_peak(), 4),
        }
        del setup
    return found


def small_model(sizes: Sizes) -> RelevanceModel:
    """Return the small model with random adapters, on the CPU."""
    torch.manual_seed(SEED)
    return adapted_model(random_backbone(sizes.small, torch.device("cpu")), MTLLoRAConfig(), NUM_TASKS).eval()


def draw_pairs(count: int) -> list[np.ndarray]:
    """Return token ids of pairs: the shipped template's instruction, then 20 to 100 tokens."""
    draw = np.random.default_rng(SEED)
    instruction = draw.integers(1, 32_000, SHIPPED)
    lengths = draw.integers(20, 100, count).tolist()
    return [np.concatenate([instruction, draw.integers(1, 32_000, length)]) for length in lengths]


def scoring(sizes: Sizes) -> dict[str, Any]:
    """Return the pairs that are scored in a second, by the tokens of a pass."""
    predictor = TaskPredictor(small_model(sizes).to(DEVICE), 0, 0, DEVICE)
    pairs, found = draw_pairs(sizes.pairs), {}
    for batch_tokens in (ScoringConfig().batch_tokens, 16 * ScoringConfig().batch_tokens):
        predictor.plan_logits(pairs[:20], batch_tokens).run()
        started_s = time.perf_counter()
        predictor.plan_logits(pairs, batch_tokens).run()
        found[f"pairs_per_s_of_{batch_tokens}_tokens"] = round(
            len(pairs) / (time.perf_counter() - started_s), 1
        )
    return found


def evaluation(sizes: Sizes) -> dict[str, Any]:
    """Compare probabilities with those of float32 on the CPU."""
    model, pairs = small_model(sizes), draw_pairs(sizes.evaluated)
    reference = copy.deepcopy(model)
    reference.trunk.float()
    logits = [
        TaskPredictor(side.to(device), 0, 0, device).plan_logits(pairs, ScoringConfig().batch_tokens).run()
        for side, device in ((model, DEVICE), (reference, torch.device("cpu")))
    ]
    here, there = (torch.from_numpy(side).softmax(dim=1) for side in logits)
    difference, tolerance = float((here - there).abs().max()), ScoringConfig().canary_tolerance
    return {"largest_difference": difference, "tolerance": tolerance, "within": difference <= tolerance}


def packing(sizes: Sizes) -> dict[str, Any]:
    """Return the time of padded rows over that of packed rows, by the tokens of the instruction."""
    model = adapted_model(random_backbone(sizes.small, DEVICE), MTLLoRAConfig(), NUM_TASKS).to(DEVICE).train()
    model.enable_packing()
    lengths = (
        np.random.default_rng(SEED).integers(SHIPPED + 20, SHIPPED + 100, 20 * sizes.packed_rows).tolist()
    )
    found = {}
    for instruction in sizes.instructions:
        ids, tasks = draw_rows(lengths, sizes.packed_rows, instruction, False, 32_000)
        task_B, of_last_B1 = torch.from_numpy(tasks), torch.ones(len(ids), 1, dtype=torch.long)
        sides: dict[str, Callable[[], None]] = {
            "padded": functools.partial(run_step, model, *pad_rows(ids, 0), task_B)
        }
        for name, shared in (("packed", 0), ("once", instruction)):
            packed_ids, layout = pack_rows(ids, tasks, np.full(NUM_TASKS, shared))
            sides[name] = functools.partial(run_step, model, packed_ids, of_last_B1, task_B, layout)
        timings = time_in_turn(f"instruction of {instruction} tokens", sides, sizes.rounds)
        found[str(instruction)] = {
            name: round(timings.ratio("padded", name).of_medians, 3) for name in ("packed", "once")
        }
    return found


def run_step(model: RelevanceModel, *batch: torch.Tensor | PackedRows) -> None:
    """Copy a batch to the device, run forward and backward, and wait for the device."""
    step(model, *(on_device(part) for part in batch))
    synchronize(DEVICE)


def on_device(part: torch.Tensor | PackedRows) -> torch.Tensor | PackedRows:
    """Return a tensor, or the tensors of a layout, on the device."""
    if isinstance(part, PackedRows):
        return PackedRows(*(tensor.to(DEVICE) for tensor in part))
    return part.to(DEVICE)


SECTIONS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "step": training_steps,
    "mfu": large_model,
    "scoring": scoring,
    "evaluation": evaluation,
    "packing": packing,
}


if __name__ == "__main__":
    main()
