"""Cost of adapters in training and inference.

    python -m tests.bench.bench_adapters [--repeats N] [--threads N] [--quick]

Prints tables, and as its last line one JSON object of ratios, first over second. The sides take turns in
every round. Times are medians over rounds. A ratio is one of medians; in brackets the span of single rounds.

Shape legend: B rows, S tokens, D width, C labels, T tasks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from jobs.environment import prepare_environment
from models.adapters.adapted_linear import NotMergeableError
from models.adapters.dora import DoRAConfig
from models.adapters.hydra_lora import HydraLoRAConfig
from models.adapters.injection import transformer_layers
from models.adapters.lora import LoRAConfig, LoRALinear
from models.adapters.moe_lora import MoELoRAConfig
from models.adapters.mtl_lora import MTLLoRAConfig, MTLLoRALinear
from models.adapters.mtlora import MTLoRAConfig
from models.adapters.multi_lora import MultiLoRAConfig
from models.adapters.per_task_lora import PerTaskLoRAConfig
from models.adapters.routing import TaskRouting
from models.backbone import Backbone, load_backbone
from models.config import AdapterConfig, BackboneConfig
from models.inference.merging import MergedModel, merge_task
from models.relevance import RelevanceModel
from tests.bench.support.published import PublishedMTLLoRALinear
from tests.bench.support.sides import (
    adapted_model,
    base_model,
    batch_logits,
    closest_rank,
    kept_bytes,
    logits_in_one_pass,
    logits_in_passes,
    peft_model,
    published_model,
    run_batches,
    train,
)
from tests.bench.support.timing import (
    SEED,
    Batch,
    about,
    build_batch,
    build_batches,
    machine,
    mib,
    pair_lengths,
    print_comparison,
    print_table,
    saved_bytes,
    time_in_turn,
)

NUM_TASKS = 4  # except where a table names another number
METHODS: dict[str, AdapterConfig] = {
    "mtl_lora": MTLLoRAConfig(),
    "lora": LoRAConfig(),
    "per_task_lora": PerTaskLoRAConfig(),
    "multi_lora": MultiLoRAConfig(),
    "moe_lora": MoELoRAConfig(num_experts=8),  # as the MTL-LoRA paper's scripts run it
    "hydra_lora": HydraLoRAConfig(),
    "dora": DoRAConfig(),
    "mtlora": MTLoRAConfig(),
}
Ratios = dict[str, float]


def bench_training(backbone: Backbone, batches: Sequence[Batch], rounds: int) -> Ratios:
    """Measure training with LoRA and MTL-LoRA of equal size, against PEFT's LoRA and the bare trunk."""
    rank = closest_rank(backbone, METHODS["mtl_lora"], NUM_TASKS)
    base, peft, mtl, mtl_64 = "base alone", f"PEFT LoRA r={rank}", f"mtl_lora T={NUM_TASKS}", "mtl_lora T=64"
    models = {
        base: base_model(backbone, NUM_TASKS),
        peft: peft_model(backbone, rank, NUM_TASKS),
        f"lora r={rank}": adapted_model(backbone, LoRAConfig(rank=rank, lora_alpha=2 * rank), NUM_TASKS),
        mtl: adapted_model(backbone, METHODS["mtl_lora"], NUM_TASKS),
        mtl_64: adapted_model(backbone, METHODS["mtl_lora"], 64),
    }
    sides = {name: partial(train, model.train(), batches) for name, model in models.items()}
    kept = {name: kept_bytes(model, batches) for name, model in models.items()}
    timings = time_in_turn(f"training {backbone.dtype}", sides, rounds)
    rows = [
        [
            name,
            f"{sum(p.numel() for p in model.trunk.parameters() if p.requires_grad):,}",
            f"{timings.median_ms(name):.0f}",
            str(timings.ratio(name, base)),
            str(timings.ratio(name, peft)),
            f"{1 - timings.ratio(base, name).of_medians:.1%}",
            mib(kept[name]),
            f"{kept[name] / kept[peft]:.3f}",
        ]
        for name, model in models.items()
    ]
    header = [
        "training",
        "trained in adapters",
        "ms",
        "over base",
        "over PEFT LoRA",
        "adapter's share",
        "MiB kept for backward",
        "over PEFT LoRA",
    ]
    print_table(
        f"Training (forward and backward), {backbone.dtype}, {about(batches)}, rounds: {rounds}", header, rows
    )
    return {
        "mtl_lora_over_peft_lora": timings.ratio(mtl, peft).of_medians,
        "t64_over_t4": timings.ratio(mtl_64, mtl).of_medians,
        "saved_bytes_over_lora": kept[mtl] / kept[peft],
    }


def bench_published(backbone: Backbone, batch: Batch, rounds: int) -> Ratios:
    """Measure training with MTL-LoRA as computed here, against its published computation."""
    ours, published = "mtl_lora", "mtl_lora as published"
    models = {
        "base alone": base_model(backbone, 8).train(),
        ours: adapted_model(backbone, METHODS["mtl_lora"], 8).train(),
        published: published_model(backbone, METHODS["mtl_lora"], 8).train(),
    }
    with torch.no_grad():
        torch.testing.assert_close(
            batch_logits(models[published], batch), batch_logits(models[ours], batch), rtol=1e-4, atol=1e-4
        )
    kept = {name: kept_bytes(model, [batch]) for name, model in models.items()}
    timings = time_in_turn(
        "published form", {name: partial(train, model, [batch]) for name, model in models.items()}, rounds
    )
    caption = (
        f"Training (forward and backward), {backbone.dtype}, {about([batch])}, T=8, rounds: {rounds}; "
        "equal outputs, computed two ways"
    )
    print_comparison(caption, timings, ours, kept)
    beyond = {name: timings.median_ms(name) - timings.median_ms("base alone") for name in (ours, published)}
    ratio = beyond[published] / beyond[ours]
    print(
        f"  beyond the base alone: {ours} {beyond[ours]:.0f} ms, as published {beyond[published]:.0f} ms, "
        f"{ratio:.2f} times as much"
    )
    return {"naive_over_mtl_lora": timings.ratio(published, ours).of_medians}


def bench_one_layer(rounds: int) -> None:
    """Measure a single linear layer, where the rest of the model does not hide differences."""
    torch.manual_seed(SEED)
    routing, generator, task_B = TaskRouting(), torch.Generator().manual_seed(SEED), torch.randint(8, (64,))
    x_BSD, gradient_BSD = torch.randn(64, 64, 1024, requires_grad=True), torch.randn(64, 64, 1024)
    base = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    mtl = MTLLoRALinear(base, 8, MTLLoRAConfig(), routing, generator)
    lora = LoRALinear(base, 8, LoRAConfig(rank=16), routing, generator)
    layers = {
        "linear alone": base,
        "lora r=16": lora,
        "mtl_lora": mtl,
        "mtl_lora as published": PublishedMTLLoRALinear(mtl),
    }

    def forward(layer: nn.Module) -> torch.Tensor:
        with routing.task_context(task_B):
            return layer(x_BSD)

    def step(layer: nn.Module) -> None:
        layer.zero_grad(set_to_none=True)
        x_BSD.grad = None
        forward(layer).backward(gradient_BSD)

    kept = {name: saved_bytes(partial(forward, layer), layer.parameters()) for name, layer in layers.items()}
    timings = time_in_turn(
        "one layer", {name: partial(step, layer) for name, layer in layers.items()}, 4 * rounds
    )
    caption = (
        "Forward and backward of one linear 1024 -> 1024, 64 rows x 64 tokens, T=8, float32, rounds: "
        f"{4 * rounds}"
    )
    print_comparison(caption, timings, "mtl_lora", kept)


def bench_all_tasks(backbone: Backbone, batches: Sequence[Batch], rounds: int) -> Ratios:
    """Measure logits of six tasks in one pass, against six passes."""
    num_layers, num_tasks = len(transformer_layers(backbone.trunk)[1]), 6
    task_layers = min(4, num_layers - 1)
    sides: dict[str, Callable[[], object]] = {}
    for method, adapter in (
        ("mtl_lora", MTLLoRAConfig(task_layers=task_layers)),
        ("mtlora", MTLoRAConfig(task_layers=task_layers)),
    ):
        model = adapted_model(backbone, adapter, num_tasks).eval()
        one_pass, passes = (
            partial(logits_in_one_pass, model, batches),
            partial(logits_in_passes, model, batches),
        )
        torch.testing.assert_close(one_pass(), passes(), rtol=1e-4, atol=1e-4)
        sides |= {f"{method} one pass": one_pass, f"{method} {num_tasks} passes": passes}
    timings = time_in_turn("all tasks", sides, rounds)
    ratios = {
        method: timings.ratio(f"{method} one pass", f"{method} {num_tasks} passes")
        for method in ("mtl_lora", "mtlora")
    }
    rows = [
        [
            method,
            f"{timings.median_ms(f'{method} one pass'):.0f}",
            f"{timings.median_ms(f'{method} {num_tasks} passes'):.0f}",
            str(ratio),
        ]
        for method, ratio in ratios.items()
    ]
    by_layers = (num_layers - task_layers + num_tasks * task_layers) / (num_tasks * num_layers)
    known = (
        f"the last {task_layers} of {num_layers} layers depend on the task (layers run: {by_layers:.3f} of "
        "those of the passes)"
    )
    caption = (
        f"Inference on {about(batches)} for all of {num_tasks} tasks, {known}, {backbone.dtype}, "
        f"rounds: {rounds}"
    )
    print_table(caption, ["method", "ms one pass", f"ms {num_tasks} passes", "ratio"], rows)
    return {"judge_all_over_passes": ratios["mtl_lora"].of_medians}


def bench_inference(backbone: Backbone, batches: Sequence[Batch], rounds: int) -> Ratios:
    """Measure inference with every method: as adapters, merged, and two of them as published."""
    base = "base alone"
    models: dict[str, RelevanceModel | MergedModel] = {base: base_model(backbone, NUM_TASKS)}
    for method, adapter in METHODS.items():
        model = adapted_model(backbone, adapter, NUM_TASKS)
        models[method] = model
        try:
            models[f"{method} merged"] = merge_task(model, 0)
        except NotMergeableError:
            continue
    for method in ("mtl_lora", "moe_lora"):
        models[f"{method} as published"] = published_model(backbone, METHODS[method], NUM_TASKS)
    with torch.inference_mode():
        for method in ("mtl_lora", "moe_lora"):
            ours, published = (
                batch_logits(models[name].eval(), batches[0]) for name in (method, f"{method} as published")
            )
            torch.testing.assert_close(published, ours, rtol=1e-4, atol=1e-4)
    timings = time_in_turn(
        "inference",
        {name: partial(run_batches, model.eval(), batches) for name, model in models.items()},
        rounds,
    )
    print_comparison(
        (
            f"Inference, {about(batches)}, T={NUM_TASKS}, rank 8, moe_lora of 8 experts, {backbone.dtype}, "
            f"rounds: {rounds}"
        ),
        timings,
        base,
    )
    return {
        "mtl_lora_over_base_inference": timings.ratio("mtl_lora", base).of_medians,
        "moe_lora_over_mtl_lora_inference": timings.ratio("moe_lora", "mtl_lora").of_medians,
    }


def timed_backbone(dtype: str, quick: bool) -> Backbone:
    """Return the backbone; with `quick` only its first two layers."""
    backbone = load_backbone(BackboneConfig(dtype=dtype))
    if quick:
        backbone.trunk.config.num_hidden_layers = 2
        backbone.trunk.layers = backbone.trunk.layers[:2]
    return backbone


def main() -> None:
    """Print all tables: about 13 minutes on two cores."""
    parser = argparse.ArgumentParser(
        description="Cost of adapters, against PEFT, the published code and the bare model"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=7,
        help="counted rounds of the first table; the others have three fewer, at least one",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--quick", action="store_true", help="one round and two layers, to check that it runs"
    )
    arguments = parser.parse_args()
    prepare_environment()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    rounds = 1 if arguments.quick else arguments.repeats
    fewer_rounds = max(1, rounds - 3)
    backbone = timed_backbone("float32", arguments.quick)
    lengths, pairs = pair_lengths(backbone.folder)
    vocab_size = backbone.trunk.config.vocab_size
    batches = build_batches(lengths, vocab_size)
    print(
        f"{machine()}\nbackbone {backbone.folder.name}, {len(transformer_layers(backbone.trunk)[1])} "
        "layers; adapters on q, k, v and o of all"
    )
    print(
        f"lengths of {pairs}, mean {statistics.mean(lengths):.1f} tokens; the batches are the middle ones of "
        "the shorter and the longer half"
    )
    print(
        "not measured: adapters (PyPI), which pins transformers ~=4.57 and cannot be installed with "
        "transformers 5"
    )
    ratios = bench_training(backbone, batches, rounds)
    ratios |= bench_published(
        backbone, build_batch([64] * 64, vocab_size, torch.Generator().manual_seed(SEED)), fewer_rounds
    )
    bench_one_layer(fewer_rounds)
    ratios |= bench_all_tasks(backbone, batches[-1:], fewer_rounds)
    ratios |= bench_inference(backbone, batches, fewer_rounds)
    bench_training(timed_backbone("bfloat16", arguments.quick), batches, fewer_rounds)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
