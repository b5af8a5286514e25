"""Speed of scoring against common alternatives, and peak memory.

    python -m tests.bench.bench_score [--pairs N] [--rounds N] [--no-memory]

Needs the real pairs of ../shared/data. SmolLM2-135M in its own precision with random MTL-LoRA adapters
and head, the real electronics pairs, two threads. The sides run in turn; medians count. Sides:

- ours: a unit from its parquet file to its published labels
- transformers' pipeline on the same merged model, batches of 32
- a hand-written loop on the merged model, rows sorted by length, batches of 32

Then measures the peak memory of a scorer with a tiny model on 100,000 and on 1,000,000 synthetic rows.
The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.places import ROOT, SHARED_DATA

TASK, THREADS, BATCH_ROWS = "electronics", 2, 32
MEMORY_ROWS = (100_000, 1_000_000)


class Bench:
    """Rows as parquet and as texts; the model as a bundle and as a transformers classifier."""

    def __init__(self, root: Path, num_pairs: int) -> None:
        import torch

        from models.inference.merging import merge_task
        from pipeline.config.loading import read_config
        from tests.support.bundles import write_evaluated_bundle

        torch.set_num_threads(THREADS)
        self.root = root
        overrides = (
            f"work_dir={root}",
            f"data.to_score={root / 'to_score'}",
            f"scoring.threads_per_actor={THREADS}",
        )
        self.config = read_config(ROOT / "jobs" / "configs" / "esci.yaml", overrides)
        whole = self._real_pairs()
        predictor = random_predictor(self.config)
        self.tokenizer = predictor.encoder.tokenizer
        self._choose_pairs(whole, predictor, num_pairs)
        self.sha256 = write_evaluated_bundle(root / "bundle", predictor, self.config)
        index = [task.name for task in self.config.tasks].index(TASK)
        self.classifier = classifier_of(merge_task(predictor.model, index))

    def _real_pairs(self) -> Any:
        """Import the electronics pairs; return their table."""
        import pyarrow as pa

        from jobs.command_run import CommandRun
        from jobs.commands.data import import_source
        from jobs.console import Console
        from pipeline.data.reader import find_partitions, read_partition

        import_source(
            "chorus",
            SHARED_DATA / "chorus_electronics" / "query_product_ratings.tsv",
            self.root / "rows",
            CommandRun(Console(out=sys.stderr)),
        )
        return pa.concat_tables(
            [read_partition(path) for path in find_partitions(self.root / "rows", self.config.tasks)[TASK]]
        )

    def _choose_pairs(self, whole: Any, predictor: Any, num_pairs: int) -> None:
        """Keep pairs that have the same tokens on all sides, as texts and as the parquet file to score."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        id_lists = predictor.encoder.encode(whole, TASK)
        texts = self.tokenizer.batch_decode(id_lists)
        # transformers tokenizes texts, so only pairs with equal tokens can be compared
        retokenized = self.tokenizer(texts)["input_ids"]
        is_same = np.array([ids == other for ids, other in zip(id_lists, retokenized, strict=True)])
        by_ad = np.argsort(np.asarray(whole.column("ad_title").to_pylist(), dtype=object), kind="stable")
        chosen = np.array([row for row in by_ad if is_same[row]][:num_pairs])
        chosen = np.random.default_rng(1).permutation(chosen)
        self.texts = [texts[row] for row in chosen]
        self.row_ids = whole.column("row_id").take(pa.array(chosen)).to_pylist()
        path = self.root / "to_score" / f"task={TASK}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(whole.take(pa.array(chosen)), path)
        print(
            f"{len(chosen)} pairs, {is_same.mean():.1%} of all have the same tokens on all sides", flush=True
        )

    def ours(self) -> tuple[float, np.ndarray, Any]:
        """Score a unit as an actor does, in a new run; return seconds, probabilities and the result."""
        from models.files import file_sha256
        from pipeline.registry.version_files import VersionFiles
        from pipeline.scoring.label_store import read_published
        from pipeline.scoring.work_units import WorkUnit
        from tests.support.scoring_world import build_scorer, plan

        run = self.config.model_copy(update={"work_dir": Path(tempfile.mkdtemp(dir=self.root))})
        (run.run_dir / "scoring").mkdir(parents=True)
        version = VersionFiles("1", self.root / "bundle", self.sha256)
        scorer = build_scorer(run, version, run.run_dir / "scoring")
        scorer.score_unit(WorkUnit(TASK, str(warm := self._warm()), file_sha256(warm), f"{TASK}-warm", None))
        (unit,), _ = plan(run, self.sha256)
        started_s = time.perf_counter()
        result = scorer.score_unit(unit)
        seconds = time.perf_counter() - started_s
        assert not result.error, result.error
        table = read_published(run.run_dir / "scores")
        # rows of the warm-up are in the table twice
        probabilities = dict(
            zip(table.column("row_id").to_pylist(), table.column("probability").to_pylist(), strict=True)
        )
        return seconds, np.array([probabilities[row_id] for row_id in self.row_ids]), result

    def _warm(self) -> Path:
        """Return a file of a few rows for the warm-up."""
        import pyarrow.parquet as pq

        path = self.root / "warm.parquet"
        if not path.exists():
            rows = pq.read_table(
                self.root / "to_score" / f"task={TASK}" / "part-0.parquet", partitioning=None
            )
            pq.write_table(rows.slice(0, 16), path)
        return path

    def hf_pipeline(self) -> tuple[float, np.ndarray, None]:
        """Score with transformers.pipeline, as in its documentation."""
        from transformers import pipeline

        classify = pipeline(
            "text-classification", model=self.classifier, tokenizer=self.tokenizer, device="cpu"
        )
        options = {"batch_size": BATCH_ROWS, "top_k": None, "function_to_apply": "softmax"}
        classify(self.texts[:16], **options)
        started_s = time.perf_counter()
        found = classify(self.texts, **options)
        seconds = time.perf_counter() - started_s
        by_label = [{label["label"]: label["score"] for label in row} for row in found]
        probability_NC = np.array([[row[f"LABEL_{label}"] for label in range(len(row))] for row in by_label])
        return seconds, probability_NC, None

    def sorted_loop(self) -> tuple[float, np.ndarray, None]:
        """Score with a hand-written loop over rows sorted by length."""
        import torch

        started_s = time.perf_counter()
        ids = self.tokenizer(self.texts)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        found: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for start in range(0, len(order), BATCH_ROWS):
                rows = order[start : start + BATCH_ROWS]
                batch = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
                probabilities = self.classifier(**batch).logits.float().softmax(dim=-1).numpy()
                found |= dict(zip(rows, probabilities, strict=True))
        return time.perf_counter() - started_s, np.stack([found[row] for row in range(len(ids))]), None


def random_predictor(config: Any) -> Any:
    """Return the config's predictor with random adapters and head."""
    import torch

    from pipeline.inference.predictor import build_predictor

    predictor = build_predictor(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in predictor.model.trainable_state().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        predictor.model.heads.bias_K.zero_()  # transformers' head has none
    return predictor


def classifier_of(merged: Any) -> Any:
    """Return the merged model as transformers' sequence classifier."""
    from transformers import LlamaForSequenceClassification

    config = merged.trunk.config
    config.num_labels, config.pad_token_id = merged.head.out_features, config.pad_token_id or 0
    model = LlamaForSequenceClassification._from_config(config, dtype=next(merged.trunk.parameters()).dtype)
    model.model = merged.trunk
    model.score.weight = type(model.score.weight)(
        merged.head.weight.to(model.score.weight.dtype), requires_grad=False
    )
    return model.eval()


def peak_mb(num_rows: int, root: Path) -> float:
    """Return the peak memory in MB of a process that scores synthetic rows with a tiny model."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_score", "--memory-of", str(num_rows), "--root", str(root)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def score_synthetic_rows(num_rows: int, root: Path) -> float:
    """Score synthetic rows with a tiny model in this process; return its peak memory in MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.config.loading import build_config
    from pipeline.inference.predictor import build_predictor
    from pipeline.registry.version_files import VersionFiles
    from pipeline.schema import ROW_SCHEMA
    from tests.support.bundles import write_evaluated_bundle
    from tests.support.planted import planted_config, planted_rows
    from tests.support.scoring_world import build_scorer, plan
    from tests.support.tiny import write_tiny_llama

    config = build_config(
        {**planted_config(root, str(write_tiny_llama(root / "tiny"))), "encode": {"max_tokens": 64}},
        "the bench",
    )
    some = pa.Table.from_pylist(planted_rows("two", 5_000, 1, labeled=False), ROW_SCHEMA)
    folder = root / "to_score" / "task=two"
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "part-0.parquet", ROW_SCHEMA) as writer:
        for start in range(0, num_rows, some.num_rows):
            ids = pa.array([f"row-{number}" for number in range(start, start + some.num_rows)])
            writer.write_table(some.set_column(0, ROW_SCHEMA.field("row_id"), ids).slice(0, num_rows - start))
    predictor = build_predictor(config)
    sha256 = write_evaluated_bundle(root / "bundle", predictor, config)
    (config.run_dir / "scoring").mkdir(parents=True)
    version = VersionFiles("1", root / "bundle", sha256)
    scorer = build_scorer(config, version, config.run_dir / "scoring")
    units, _ = plan(config, sha256)
    print(f"{len(units)} units", file=sys.stderr)
    for unit in units:
        result = scorer.score_unit(unit)
        assert not result.error, result.error
    # not getrusage, which on Linux starts at the parent's value
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure all sides in turn."""
    parser = argparse.ArgumentParser(description="Speed and memory of scoring")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.memory_of:
        print(score_synthetic_rows(arguments.memory_of, arguments.root))
        return
    if not SHARED_DATA.is_dir():
        sys.exit(f"real pairs missing: {SHARED_DATA}; this bench scores them")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="bench_score") as name:
        bench = Bench(Path(name), arguments.pairs)
        sides = {"ours": bench.ours, "HF pipeline": bench.hf_pipeline, "sorted loop": bench.sorted_loop}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        probabilities: dict[str, np.ndarray] = {}
        shares, efficiencies, computed = [], [], 0.0
        for number in range(arguments.rounds):
            for side, score in sides.items():
                print(f"round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr, flush=True)
                took_s, probabilities[side], unit_result = score()
                seconds[side].append(took_s)
                if side == "ours":
                    shares.append(unit_result.model_s / took_s)
                    efficiencies.append(unit_result.at_peak_s / unit_result.model_s)
                    computed = unit_result.tokens_computed / unit_result.tokens_in
        (task,) = (task for task in bench.config.tasks if task.name == TASK)
        relevant = {
            side: rows if rows.ndim == 1 else rows[:, task.relevant_from :].sum(axis=1)
            for side, rows in probabilities.items()
        }
        median = {side: statistics.median(times) for side, times in seconds.items()}
        for side, took_s in median.items():
            print(
                f"{side:12} {len(bench.texts) / took_s:7.2f} pairs/s  largest difference "
                f"{np.abs(relevant[side] - relevant['ours']).max():.4f}"
            )
        measured = {
            "speed_over_hf_pipeline": round(median["HF pipeline"] / median["ours"], 3),
            "speed_over_sorted_loop": round(median["sorted loop"] / median["ours"], 3),
            "model_time_share": round(statistics.median(shares), 4),
            "tokens_computed_share": round(computed, 4),
            "matmul_efficiency": round(statistics.median(efficiencies), 4),
            "max_probability_difference": round(
                max(float(np.abs(rows - relevant["ours"]).max()) for rows in relevant.values()), 5
            ),
        }
    if not arguments.no_memory:
        for rows, key in zip(MEMORY_ROWS, ("peak_mb_100k", "peak_mb_1m"), strict=True):
            with tempfile.TemporaryDirectory(prefix="bench_score") as name:
                measured[key] = round(peak_mb(rows, Path(name)), 1)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
