"""What it saves to take the rows' beginnings once: `python tests/bench/bench_beginnings.py [--rounds N]`.

SmolLM2-135M with MTL-LoRA adapters for four tasks, two threads, forward and backward of one batch: whole rows, and what their tasks' rows begin with
once for each task; sides in turn, ratios of medians. Rows have the lengths of judged pairs (the real ones of ../shared/data where there are any, else
made-up ones) and random tokens; instructions of the shipped template's length, and long ones as those that explain every grade. The last line is one
JSON object.
"""

import argparse
import json

import numpy as np
import torch
from sides import adapted_model
from timing import SEED, machine, pair_lengths, print_table, time_in_turn

from models.backbone import load_backbone
from models.beginnings import lay_out
from models.config import BackboneConfig, MTLLoRAConfig
from models.relevance import RelevanceModel
from pipeline.batches import pad_rows

TASKS = 4
SHIPPED = 10  # tokens of the shipped template before the first field
INSTRUCTIONS = {"as shipped": SHIPPED, "long": 80}
BATCH_ROWS = (8, 32)


def draw_rows(lengths: list[int], num_rows: int, instruction: int, vocab_size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(token ids of rows of middling length, their tasks)."""
    draw = np.random.default_rng(SEED)
    middle = len(lengths) // 2
    tasks = draw.integers(TASKS, size=num_rows)
    beginnings = draw.integers(1, vocab_size, (TASKS, instruction))
    own = [length - SHIPPED for length in sorted(lengths)[middle : middle + num_rows]]
    return [np.concatenate([beginnings[task], draw.integers(1, vocab_size, count)]) for task, count in zip(tasks, own, strict=True)], tasks


def step(model: RelevanceModel, *batch: object) -> None:
    """Forward and backward."""
    logits_BC = model(*batch)
    logits_BC[logits_BC.isfinite()].square().sum().backward()


def main() -> None:
    """All batches in turn."""
    parser = argparse.ArgumentParser(description="Beginnings of rows taken once")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    backbone = load_backbone(BackboneConfig())
    lengths, which = pair_lengths(backbone.folder)
    model = adapted_model(backbone, MTLLoRAConfig(), TASKS).train()
    vocab_size = backbone.trunk.get_input_embeddings().num_embeddings
    table, ratios = [], {}
    for name, instruction in INSTRUCTIONS.items():
        for num_rows in BATCH_ROWS:
            id_lists, tasks = draw_rows(lengths, num_rows, instruction, vocab_size)
            task_B = torch.from_numpy(tasks)
            ids_BS, mask_BS = pad_rows(id_lists, 0)
            apart = lay_out(id_lists, tasks, np.full(TASKS, instruction), 0)
            ids_RS, tail_BS = torch.from_numpy(apart.ids_RS), torch.from_numpy(apart.mask_BS)
            sides = {
                "whole": lambda ids=ids_BS, mask=mask_BS, task=task_B: step(model, ids, mask, task),
                "once": lambda ids=ids_RS, mask=tail_BS, task=task_B, begin=apart.beginnings: step(model, ids, mask, task, begin),
            }
            timings = time_in_turn(f"{name}, {num_rows} rows", sides, rounds)
            ratio = timings.ratio("whole", "once")
            share = ids_RS.numel() / ids_BS.numel()
            table.append([f"{name} ({instruction} tokens), {num_rows} rows of {ids_BS.shape[1]}", f"{share:.3f}", str(ratio)])
            ratios[f"{name}, {num_rows} rows"] = {"tokens": round(share, 4), "speed": round(ratio.of_medians, 4)}
    print_table(f"{which}; {backbone.dtype}; {machine()}", ["instruction and batch", "tokens computed", "times as fast"], table)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
