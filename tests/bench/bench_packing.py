"""What it saves to train on rows that lie end to end: `python -m tests.bench.bench_packing [--rounds N]
[--compiled]`.

SmolLM2-135M with MTL-LoRA adapters for four tasks, two threads, forward and backward of one batch: padded
rows; packed ones; and packed ones with what their tasks' rows begin with once for each task. Sides in turn,
ratios of medians. Rows have the lengths of judged pairs (the real ones of ../shared/data where there are any,
else made-up ones), like ones as training's batches have and any as they come, and random tokens; instructions
of the shipped template's length, and long ones as those that explain every grade. The last line is one JSON
object.
"""

import argparse
import json

import numpy as np
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig
from models.packing import pack
from models.relevance import RelevanceModel
from models.training.compilation import compile_layers
from pipeline.encoding.batches import pad_rows
from tests.bench.support.sides import adapted_model
from tests.bench.support.timing import SEED, machine, pair_lengths, print_table, time_in_turn

TASKS = 4
SHIPPED = 10  # tokens of the shipped template before the first field
BATCHES = [
    ("as shipped", 8, SHIPPED, True),
    ("as shipped", 32, SHIPPED, True),
    ("as shipped, any lengths", 32, SHIPPED, False),
    ("long", 8, 80, True),
    ("long", 32, 80, True),
]


def draw_rows(
    lengths: list[int], num_rows: int, instruction: int, like: bool, vocab_size: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """(token ids of rows, of middling length where they are to be `like`, their tasks)."""
    draw = np.random.default_rng(SEED)
    middle = len(lengths) // 2
    some = sorted(lengths)[middle : middle + num_rows] if like else draw.choice(lengths, num_rows).tolist()
    tasks = draw.integers(TASKS, size=num_rows)
    beginnings = draw.integers(1, vocab_size, (TASKS, instruction))
    own = [max(1, length - SHIPPED) for length in some]
    return [
        np.concatenate([beginnings[task], draw.integers(1, vocab_size, count)])
        for task, count in zip(tasks, own, strict=True)
    ], tasks


def step(model: RelevanceModel, *batch: object) -> None:
    """Forward and backward."""
    logits_BC = model(*batch)
    logits_BC[logits_BC.isfinite()].square().sum().backward()


def main() -> None:
    """All batches in turn."""
    parser = argparse.ArgumentParser(description="Training on rows that lie end to end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="compile the layers")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    backbone = load_backbone(BackboneConfig())
    lengths, which = pair_lengths(backbone.folder)
    model = adapted_model(backbone, MTLLoRAConfig(), TASKS).train()
    model.take_packed()
    if arguments.compiled:
        compile_layers(model)
    vocab_size = backbone.trunk.get_input_embeddings().num_embeddings
    table, ratios = [], {}
    for name, num_rows, instruction, like in BATCHES:
        id_lists, tasks = draw_rows(lengths, num_rows, instruction, like, vocab_size)
        task_B, of_last_B1 = torch.from_numpy(tasks), torch.ones(num_rows, 1, dtype=torch.long)
        ids_BS, mask_BS = pad_rows(id_lists, 0)
        packed, once = (pack(id_lists, tasks, np.full(TASKS, shared)) for shared in (0, instruction))
        sides = {
            "padded": lambda ids=ids_BS, mask=mask_BS, task=task_B: step(model, ids, mask, task),
            "packed": lambda batch=packed, mask=of_last_B1, task=task_B: step(
                model, batch[0], mask, task, batch[1]
            ),
            "once": lambda batch=once, mask=of_last_B1, task=task_B: step(
                model, batch[0], mask, task, batch[1]
            ),
        }
        timings = time_in_turn(f"{name}, {num_rows} rows", sides, arguments.rounds)
        ratio = {side: timings.ratio("padded", side) for side in ("packed", "once")}
        shares = {
            side: batch[0].numel() / ids_BS.numel() for side, batch in (("packed", packed), ("once", once))
        }
        about = f"{name} ({instruction} tokens), {num_rows} rows of up to {ids_BS.shape[1]}"
        table.append([about, *(f"{shares[side]:.3f}: {ratio[side]}" for side in ratio)])
        ratios[f"{name}, {num_rows} rows"] = {
            side: {"tokens": round(shares[side], 4), "speed": round(ratio[side].of_medians, 4)}
            for side in ratio
        }
    caption = f"{which}; {backbone.dtype}{', compiled' if arguments.compiled else ''}; {machine()}"
    print_table(
        caption,
        ["instruction and batch", "packed: of the tokens, times as fast", "beginnings once too"],
        table,
    )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
