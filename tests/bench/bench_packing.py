"""Speed of training on packed rows.

    python -m tests.bench.bench_packing [--rounds N] [--compiled]

SmolLM2-135M with MTL-LoRA adapters for four tasks, two threads, forward and backward of one batch. Sides:
padded rows, packed rows, and packed rows with each task's common beginning once. The sides run in turn;
ratios are of medians. Rows have random tokens and the lengths of labeled pairs (the real ones of
../shared/data if they are on disk): similar lengths, as in training's batches, or any. Instructions are
as long as the shipped template's, or long enough to explain every label. The last line is one JSON
object.
"""

import argparse
import json

import numpy as np
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import load_backbone
from models.config import BackboneConfig
from models.packing import pack_rows
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
    lengths: list[int], num_rows: int, instruction: int, is_similar: bool, vocab_size: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the token ids and tasks of rows; with `is_similar`, all rows have about the median length."""
    draw = np.random.default_rng(SEED)
    middle = len(lengths) // 2
    if is_similar:
        chosen = sorted(lengths)[middle : middle + num_rows]
    else:
        chosen = draw.choice(lengths, num_rows).tolist()
    tasks = draw.integers(TASKS, size=num_rows)
    beginnings = draw.integers(1, vocab_size, (TASKS, instruction))
    own_lengths = [max(1, length - SHIPPED) for length in chosen]
    rows = [
        np.concatenate([beginnings[task], draw.integers(1, vocab_size, count)])
        for task, count in zip(tasks, own_lengths, strict=True)
    ]
    return rows, tasks


def step(model: RelevanceModel, *batch: object) -> None:
    """Run forward and backward."""
    logits_BC = model(*batch)
    logits_BC[logits_BC.isfinite()].square().sum().backward()


def main() -> None:
    """Measure all batches in turn."""
    parser = argparse.ArgumentParser(description="Speed of training on packed rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="compile the layers")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    backbone = load_backbone(BackboneConfig())
    lengths, pairs = pair_lengths(backbone.folder)
    model = adapted_model(backbone, MTLLoRAConfig(), TASKS).train()
    model.enable_packing()
    if arguments.compiled:
        compile_layers(model)
    vocab_size = backbone.trunk.get_input_embeddings().num_embeddings
    table, ratios = [], {}
    for name, num_rows, instruction, is_similar in BATCHES:
        id_lists, tasks = draw_rows(lengths, num_rows, instruction, is_similar, vocab_size)
        task_B, of_last_B1 = torch.from_numpy(tasks), torch.ones(num_rows, 1, dtype=torch.long)
        ids_BS, mask_BS = pad_rows(id_lists, 0)
        packed, once = (pack_rows(id_lists, tasks, np.full(TASKS, shared)) for shared in (0, instruction))
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
    caption = f"{pairs}; {backbone.dtype}{', compiled' if arguments.compiled else ''}; {machine()}"
    print_table(
        caption,
        ["instruction and batch", "packed: share of tokens, speed", "and beginnings once"],
        table,
    )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
