"""Batches of real lengths, and timing of several implementations in turn.

Taking turns spreads other load of the machine over all of them. Shape legend: B rows, S tokens, T tasks.
"""

import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.backbone import load_tokenizer
from tests.support.places import ROOT, SHARED_DATA

SEED = 17
NUM_LABELS = 4  # of every task
BATCH_ROWS = 16
NUM_BATCHES = 2  # per step: one of shorter rows, one of longer rows


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right, for a model of any number of tasks."""

    input_ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    draw_B: torch.Tensor  # uniform in [0, 1); chooses the task of each row
    label_B: torch.Tensor

    def task_B(self, num_tasks: int) -> torch.Tensor:
        """Return the task of each row."""
        return (self.draw_B * num_tasks).long()


def pair_lengths(folder: Path) -> tuple[list[int], str]:
    """Return the tokens of every labeled pair, and a description of the pairs.

    They are the real pairs if those are on disk, and synthetic ones otherwise.
    """
    from pipeline.config.loading import read_config
    from pipeline.data.importers.chorus import import_chorus
    from pipeline.data.importers.esci import import_esci
    from pipeline.data.reader import find_partitions, read_partition
    from pipeline.data.synthetic.marketplace import build_marketplace
    from pipeline.encoding.encoder import Encoder

    real = (SHARED_DATA / "esci_sample").is_dir() and (SHARED_DATA / "chorus_electronics").is_dir()
    config = read_config(ROOT / "jobs" / "configs" / ("esci.yaml" if real else "demo.yaml"))
    if real:
        with tempfile.TemporaryDirectory() as out_dir:
            import_esci(SHARED_DATA / "esci_sample", Path(out_dir))
            import_chorus(SHARED_DATA / "chorus_electronics" / "query_product_ratings.tsv", Path(out_dir))
            tables = {
                name: read_partition(path)
                for name, paths in find_partitions(Path(out_dir), config.tasks).items()
                for path in paths
            }
    else:
        tables = build_marketplace(700, 1, SEED).rows
    encoder = Encoder(load_tokenizer(folder), config.tasks, config.encode)
    lengths = [len(ids) for name, table in tables.items() for ids in encoder.encode(table, name)]
    kind = "real (ESCI sample and Chorus electronics)" if real else "synthetic"
    return lengths, f"{len(lengths):,} {kind} labeled pairs"


def build_batches(lengths: Sequence[int], vocab_size: int) -> list[Batch]:
    """Return the middle batch of each half of the pairs, sorted by length as in training and scoring."""
    generator = torch.Generator().manual_seed(SEED)
    ordered = sorted(lengths)
    starts = [
        (2 * part + 1) * len(ordered) // (2 * NUM_BATCHES) - BATCH_ROWS // 2 for part in range(NUM_BATCHES)
    ]
    return [build_batch(ordered[start : start + BATCH_ROWS], vocab_size, generator) for start in starts]


def build_batch(lengths: Sequence[int], vocab_size: int, generator: torch.Generator) -> Batch:
    """Return rows of these lengths with random tokens, tasks and labels."""
    mask_BS = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    input_ids_BS = torch.randint(vocab_size, mask_BS.shape, generator=generator) * mask_BS
    draw_B = torch.rand(len(lengths), generator=generator)
    label_B = torch.randint(NUM_LABELS, (len(lengths),), generator=generator)
    return Batch(input_ids_BS, mask_BS, draw_B, label_B)


# --- Timing


@dataclass(frozen=True)
class Ratio:
    """Time of one side over that of another."""

    of_medians: float
    lowest: float  # ratio of a single round
    highest: float

    def __str__(self) -> str:
        return f"{self.of_medians:.3f} ({self.lowest:.2f}-{self.highest:.2f})"


@dataclass(frozen=True)
class Timings:
    """Seconds of every counted round, by side."""

    seconds: Mapping[str, Sequence[float]]

    def median_ms(self, side: str) -> float:
        return 1000 * statistics.median(self.seconds[side])

    def ratio(self, side: str, other: str) -> Ratio:
        """Return the time of `side` over that of `other`."""
        by_round = [
            first / second for first, second in zip(self.seconds[side], self.seconds[other], strict=True)
        ]
        return Ratio(self.median_ms(side) / self.median_ms(other), min(by_round), max(by_round))


def time_in_turn(title: str, sides: Mapping[str, Callable[[], object]], rounds: int) -> Timings:
    """Run every side once per round, each round starting with the next side.

    The first round warms up and does not count.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(rounds + 1):
        label = f"round {round_index} of {rounds}" if round_index else "warm-up"
        print(f"{title}: {label}", file=sys.stderr, flush=True)
        first = round_index % len(names)
        gc.collect()
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            sides[name]()
            if round_index:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def saved_bytes(forward: Callable[[], torch.Tensor], resident: Iterable[torch.Tensor]) -> int:
    """Return the bytes that `forward` saves for its backward pass, without those of `resident` tensors.

    Each storage counts once.
    """
    size_bytes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        size_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that saved its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # kept alive while counting: the address of a freed storage may be reused
    for tensor in resident:
        size_bytes.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(size_bytes.values())


# --- Printing


def print_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned text under a caption, names to the left and numbers to the right."""
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    print(f"\n{caption}")
    for name, *numbers in (header, *rows):
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join(["", name.ljust(widths[0]), *cells]))
    sys.stdout.flush()


def print_comparison(
    caption: str, timings: Timings, reference: str, kept_bytes: Mapping[str, int] | None = None
) -> None:
    """Print each side's time over that of the reference, and its saved activations if they were counted."""
    header = ["side", "ms", f"over {reference}"]
    rows = [
        [name, f"{timings.median_ms(name):.1f}", str(timings.ratio(name, reference))]
        for name in timings.seconds
    ]
    if kept_bytes:
        header = [*header, "MiB kept for backward", "over " + reference]
        rows = [
            [*row, mib(kept_bytes[row[0]]), f"{kept_bytes[row[0]] / kept_bytes[reference]:.3f}"]
            for row in rows
        ]
    print_table(caption, header, rows)


def mib(size_bytes: int) -> str:
    """Return bytes as MiB."""
    return f"{size_bytes / 2**20:.1f}"


def about(batches: Sequence[Batch]) -> str:
    """Describe batches in words."""
    return " + ".join(f"{len(batch.mask_BS)} rows x {batch.mask_BS.shape[1]} tokens" for batch in batches)


def machine() -> str:
    """Describe the machine."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, cpu "
        f"{names[0] if names else platform.processor()}"
    )
