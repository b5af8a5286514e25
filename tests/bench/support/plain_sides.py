"""The other sides of bench_train.py: a plain PyTorch loop, and Hugging Face's Trainer.

Both train on the rows of our steps, in a new process or in two that share each batch; on a GPU if there is
one.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.support.train_sides import BATCH_ROWS, WARM_STEPS, Measurements, encoded_rows, read_run

LORA_RANK = 15  # 1.73 M parameters; MTL-LoRA has 1.70 M


def in_two_processes(side: Callable[..., Measurements], *arguments: Any) -> Measurements:
    """Run a side in two processes with the variables of torchrun; return the results of rank 0."""
    import torch

    from tests.support.servers import free_port

    with tempfile.TemporaryDirectory() as name:
        torch.multiprocessing.spawn(
            run_rank, (free_port(), Path(name) / "results.json", side, arguments), nprocs=2
        )
        results: Measurements = json.loads((Path(name) / "results.json").read_text())
        return results


def run_rank(
    rank: int, port: int, results_path: Path, side: Callable[..., Measurements], arguments: tuple[Any, ...]
) -> None:
    """Run one rank of a side; rank 0 writes its results."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in variables.items()}})
    results = side(*arguments)
    if rank == 0:
        results_path.write_text(json.dumps(results))


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes that share each batch."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sum_gradients(parameters: list[Any]) -> None:
    """Sum the gradients over all ranks in one exchange."""
    import torch

    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def bare(run_dir: Path, steps: int, compiled: bool) -> Measurements:
    """Train our model on our batches in a plain PyTorch loop."""
    import torch

    from models.losses import row_losses, task_sums
    from models.training.compilation import compile_layers
    from pipeline.encoding.batches import collate
    from pipeline.inference.predictor import build_predictor
    from pipeline.runtime.timing import synchronize
    from pipeline.training.head_init import initialize_heads
    from pipeline.training.optimizer import build_optimizer
    from pipeline.training.packing_probe import probe_packing
    from pipeline.training.worker_setup import build_sampler

    rank, world_size = rank_and_world_size()
    torch.set_num_threads(2 // world_size)
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    config, encoded = read_run(run_dir), encoded_rows(run_dir)
    sampler = build_sampler(encoded, config.tasks, config.training, config.seed)
    predictor = build_predictor(config, device)
    beginning_T = probe_packing(predictor, encoded, config.adapter)
    initialize_heads(predictor, encoded, beginning_T, rank, world_size)
    if compiled:
        compile_layers(predictor.model)
    predictor.model.train()
    optimizer = build_optimizer(predictor.model, config.optimizer)
    relevant_from_T = torch.tensor([task.relevant_from for task in config.tasks], device=device)
    trained = list(predictor.model.trainable_state().values())
    times, tokens = [time.perf_counter()], [0, 0]
    for step in range(steps):
        batch = collate(
            encoded,
            sampler.rank_rows(step, rank, world_size, beginning_T),
            len(config.tasks),
            predictor.pad_id,
            beginning_T,
        ).to(device)
        logits_BC = predictor.model(*batch.inputs)
        loss_B = row_losses(logits_BC, batch.label_B, relevant_from_T[batch.task_B])
        loss_T, _ = task_sums(loss_B, batch.weight_B, batch.task_B, len(config.tasks))
        (loss_T.sum() / len(sampler.global_rows(step))).backward()
        if world_size > 1:
            sum_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        times.append(time.perf_counter())
        tokens = [tokens[0] + batch.num_padding, tokens[1] + batch.input_ids_BS.numel()]
    return {
        "pairs_per_s": (steps - WARM_STEPS) * BATCH_ROWS / (times[-1] - times[WARM_STEPS]),
        "padding": tokens[0] / tokens[1],
    }


def step_items(encoded: Any, sampler: Any, steps: int) -> list[dict[str, Any]]:
    """Return the rows of our steps, in their order, as Trainer takes them."""
    import numpy as np

    rows = np.concatenate([sampler.global_rows(step) for step in range(steps)])
    return [
        {
            "input_ids": encoded.ids_of(row).tolist(),
            "labels": int(label),
        }
        for row, label in zip(rows.tolist(), encoded.labels_of(rows), strict=True)
    ]


def lora_classifier(config: Any) -> tuple[Any, Any]:
    """Load transformers' sequence classifier with peft's LoRA, and its tokenizer."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from models.backbone import choose_dtype, resolve_folder

    folder = resolve_folder(config.backbone)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = choose_dtype(config.backbone.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=4, dtype=dtype, pad_token_id=tokenizer.pad_token_id
    )
    targets = list(config.adapter.target_modules)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets
    )
    return get_peft_model(model, lora), tokenizer


def training_arguments(out_dir: str, steps: int, world_size: int, grouped: bool) -> Any:
    """Return Trainer's settings: our batch size and learning rate; no logging, no saving."""
    import torch
    from transformers import TrainingArguments

    strategy = {"train_sampling_strategy": "group_by_length"} if grouped else {}
    if world_size > 1:
        strategy["ddp_backend"] = "gloo"
    return TrainingArguments(
        out_dir,
        per_device_train_batch_size=BATCH_ROWS // world_size,
        max_steps=steps,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        learning_rate=5e-4,
        seed=17,
        **strategy,
    )


def hugging_face(run_dir: Path, steps: int, grouped: bool) -> Measurements:
    """Train with transformers' Trainer on the rows of our steps."""
    import torch
    from transformers import DataCollatorWithPadding

    from pipeline.training.worker_setup import build_sampler

    _, world_size = rank_and_world_size()
    torch.set_num_threads(2 // world_size)
    config, encoded = read_run(run_dir), encoded_rows(run_dir)
    items = step_items(encoded, build_sampler(encoded, config.tasks, config.training, config.seed), steps)
    model, tokenizer = lora_classifier(config)
    collate, tokens = DataCollatorWithPadding(tokenizer), [0, 0]

    def collate_and_count(examples: list[dict[str, Any]]) -> Any:
        batch = collate(examples)
        tokens[0] += sum(len(example["input_ids"]) for example in examples)
        tokens[1] += batch["input_ids"].numel()
        return batch

    with tempfile.TemporaryDirectory() as out_dir:
        arguments = training_arguments(out_dir, steps, world_size, grouped)
        times = time_trainer(model, items, collate_and_count, arguments)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pairs_per_s = (steps - WARM_STEPS) * BATCH_ROWS / (times[-1] - times[WARM_STEPS - 1])
    return {"pairs_per_s": pairs_per_s, "padding": 1 - tokens[0] / tokens[1], "trained": trained}


def time_trainer(model: Any, items: list[dict[str, Any]], collate: Any, arguments: Any) -> list[float]:
    """Train with transformers' Trainer; return the time at the end of each step."""
    from transformers import Trainer, TrainerCallback

    from pipeline.runtime.timing import synchronize

    times = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(model.device)
            times.append(time.perf_counter())

    trainer = Trainer(
        model=model, args=arguments, train_dataset=items, data_collator=collate, callbacks=[Clock()]
    )
    trainer.train()
    return times
