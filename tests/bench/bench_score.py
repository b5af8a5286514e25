"""How fast scoring is beside what people use: `python -m tests.bench.bench_score [--pairs N] [--rounds N]
[--no-memory]`. Needs the real pairs of ../shared/data.

SmolLM2-135M in its own precision with MTL-LoRA adapters and a head of random numbers, the real electronics
pairs, two threads, sides in turn, medians. Sides: ours, a unit from its parquet file to its published labels;
transformers' pipeline over the same merged model, batches of 32; a hand-written loop over it, rows sorted by
length, batches of 32. Then the peak memory of a scorer with a tiny model on 100,000 and on 1,000,000 made-up
rows. Prints what each took, and as its last line one JSON object.
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
    """The rows, as parquet and as texts, and the model, as a bundle and as transformers has it."""

    def __init__(self, root: Path, num_pairs: int) -> None:
        import torch

        from models.inference.merging import merge_task
        from models.serialization.bundle import write_bundle
        from pipeline.config.loading import read_config
        from pipeline.inference.predictor import describe

        torch.set_num_threads(THREADS)
        self.root = root
        sets = (
            f"work_dir={root}",
            f"data.to_score={root / 'to_score'}",
            f"scoring.threads_per_actor={THREADS}",
        )
        self.config = read_config(ROOT / "jobs" / "configs" / "esci.yaml", sets)
        whole = self._real_pairs()
        judge = random_judge(self.config)
        self.tokenizer = judge.encoder.tokenizer
        self._choose_pairs(whole, judge, num_pairs)
        self.sha256 = write_bundle(
            root / "bundle",
            describe(judge, self.config, {}),
            judge.model.trainable_state(),
            judge.backbone.folder,
        )
        index = [task.name for task in self.config.tasks].index(TASK)
        self.classifier = classifier_of(merge_task(judge.model, index))

    def _real_pairs(self) -> Any:
        """Import the electronics pairs; return their table."""
        import pyarrow as pa

        from jobs.commands.data import import_source
        from jobs.console import Console
        from pipeline.data.reader import find_partitions, read_partition

        import_source(
            "chorus",
            SHARED_DATA / "chorus_electronics" / "query_product_ratings.tsv",
            self.root / "rows",
            Console(err=sys.stderr),
        )
        return pa.concat_tables(
            [read_partition(path) for path in find_partitions(self.root / "rows", self.config.tasks)[TASK]]
        )

    def _choose_pairs(self, whole: Any, judge: Any, num_pairs: int) -> None:
        """Keep pairs that have the same tokens on all sides, as texts and as the parquet file to score."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        id_lists = judge.encoder.encode(whole, TASK)
        texts = self.tokenizer.batch_decode(id_lists)
        # of the others, transformers would not get the tokens that we get
        same = np.array(
            [ids == again for ids, again in zip(id_lists, self.tokenizer(texts)["input_ids"], strict=True)]
        )
        by_ad = np.argsort(np.asarray(whole.column("ad_title").to_pylist(), dtype=object), kind="stable")
        chosen = np.array([row for row in by_ad if same[row]][:num_pairs])
        chosen = np.random.default_rng(1).permutation(chosen)
        self.texts, self.row_ids = (
            [texts[row] for row in chosen],
            whole.column("row_id").take(pa.array(chosen)).to_pylist(),
        )
        path = self.root / "to_score" / f"task={TASK}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(whole.take(pa.array(chosen)), path)
        print(f"{len(chosen)} pairs, {same.mean():.1%} of all have the same tokens on all sides", flush=True)

    def ours(self) -> tuple[float, np.ndarray, Any]:
        """A unit as an actor scores it, into a new run."""
        from models.files import file_sha256
        from pipeline.registry.version_files import FetchedVersion
        from pipeline.scoring.actor import UnitScorer
        from pipeline.scoring.label_store import read_published
        from pipeline.scoring.ray_pipeline import actor_settings
        from pipeline.scoring.work_units import Unit, plan_units

        run = self.config.model_copy(update={"work_dir": Path(tempfile.mkdtemp(dir=self.root))})
        (run.run_dir / "scoring").mkdir(parents=True)
        version = FetchedVersion("1", self.root / "bundle", self.sha256)
        scorer = UnitScorer(actor_settings(run, version, run.run_dir / "scoring"))
        scorer.outcome(Unit(TASK, str(warm := self._warm()), file_sha256(warm), f"{TASK}-warm", None))
        (unit,), _ = plan_units(run, self.sha256)
        started_s = time.perf_counter()
        outcome = scorer.outcome(unit)
        seconds = time.perf_counter() - started_s
        assert not outcome.error, outcome.error
        table = read_published(run.run_dir / "scores")
        # of the warm rows twice
        said = dict(
            zip(table.column("row_id").to_pylist(), table.column("probability").to_pylist(), strict=True)
        )
        return seconds, np.array([said[row_id] for row_id in self.row_ids]), outcome

    def _warm(self) -> Path:
        """A few rows that are scored before the clock runs."""
        import pyarrow.parquet as pq

        path = self.root / "warm.parquet"
        if not path.exists():
            pq.write_table(
                pq.read_table(
                    self.root / "to_score" / f"task={TASK}" / "part-0.parquet", partitioning=None
                ).slice(0, 16),
                path,
            )
        return path

    def hf_pipeline(self) -> tuple[float, np.ndarray, None]:
        """transformers.pipeline, as its documentation has it."""
        from transformers import pipeline

        classify = pipeline(
            "text-classification", model=self.classifier, tokenizer=self.tokenizer, device="cpu"
        )
        options = {"batch_size": BATCH_ROWS, "top_k": None, "function_to_apply": "softmax"}
        classify(self.texts[:16], **options)
        started_s = time.perf_counter()
        found = classify(self.texts, **options)
        seconds = time.perf_counter() - started_s
        by_label = [{one["label"]: one["score"] for one in row} for row in found]
        return (
            seconds,
            np.array([[row[f"LABEL_{label}"] for label in range(len(row))] for row in by_label]),
            None,
        )

    def sorted_loop(self) -> tuple[float, np.ndarray, None]:
        """What one writes by hand."""
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


def random_judge(config: Any) -> Any:
    """Build the configured judge with random adapters and head."""
    import torch

    from pipeline.inference.predictor import fresh_judge

    judge = fresh_judge(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in judge.model.trainable_state().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        judge.model.heads.bias_K.zero_()  # transformers' head has none
    return judge


def classifier_of(merged: Any) -> Any:
    """The merged model as transformers' own sequence classifier."""
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
    """Peak memory of a process that scores so many rows with a tiny model."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_score", "--memory-of", str(num_rows), "--root", str(root)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def score_made_up(num_rows: int, root: Path) -> float:
    """Score made-up rows with a tiny model in this process; its peak memory in MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from models.serialization.bundle import write_bundle
    from pipeline.config.loading import build_config
    from pipeline.inference.predictor import describe, fresh_judge
    from pipeline.registry.version_files import FetchedVersion
    from pipeline.schema import ROW_SCHEMA
    from pipeline.scoring.actor import UnitScorer
    from pipeline.scoring.ray_pipeline import actor_settings
    from pipeline.scoring.work_units import plan_units
    from tests.support.planted import planted_config, planted_rows
    from tests.support.tiny import write_tiny_llama

    config = build_config(
        {**planted_config(root, str(write_tiny_llama(root / "tiny"))), "encode": {"max_tokens": 64}},
        "the bench",
    )
    some = pa.Table.from_pylist(planted_rows("two", 5_000, 1, labelled=False), ROW_SCHEMA)
    folder = root / "to_score" / "task=two"
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "part-0.parquet", ROW_SCHEMA) as writer:
        for start in range(0, num_rows, some.num_rows):
            ids = pa.array([f"row-{number}" for number in range(start, start + some.num_rows)])
            writer.write_table(some.set_column(0, ROW_SCHEMA.field("row_id"), ids).slice(0, num_rows - start))
    judge = fresh_judge(config)
    sha256 = write_bundle(
        root / "bundle", describe(judge, config, {}), judge.model.trainable_state(), judge.backbone.folder
    )
    (config.run_dir / "scoring").mkdir(parents=True)
    scorer = UnitScorer(
        actor_settings(config, FetchedVersion("1", root / "bundle", sha256), config.run_dir / "scoring")
    )
    units, _ = plan_units(config, sha256)
    print(f"{len(units)} units", file=sys.stderr)
    for unit in units:
        outcome = scorer.outcome(unit)
        assert not outcome.error, outcome.error
    # not getrusage: what it tells begins with what the parent process had
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    """All sides in turn."""
    parser = argparse.ArgumentParser(description="Scoring beside what people use")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.memory_of:
        print(score_made_up(arguments.memory_of, arguments.root))
        return
    if not SHARED_DATA.is_dir():
        sys.exit(f"{SHARED_DATA} is absent: this bench scores the real pairs")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="bench_score") as name:
        bench = Bench(Path(name), arguments.pairs)
        sides = {"ours": bench.ours, "HF pipeline": bench.hf_pipeline, "sorted loop": bench.sorted_loop}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        said: dict[str, np.ndarray] = {}
        shares, efficiencies, computed = [], [], 0.0
        for number in range(arguments.rounds):
            for side, score in sides.items():
                print(f"round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr, flush=True)
                took_s, said[side], outcome = score()
                seconds[side].append(took_s)
                if side == "ours":
                    shares.append(outcome.model_s / took_s)
                    efficiencies.append(outcome.at_peak_s / outcome.model_s)
                    computed = outcome.tokens_computed / outcome.tokens_in
        (task,) = (task for task in bench.config.tasks if task.name == TASK)
        relevant = {
            side: rows if rows.ndim == 1 else rows[:, task.relevant_from :].sum(axis=1)
            for side, rows in said.items()
        }
        median = {side: statistics.median(times) for side, times in seconds.items()}
        for side, took_s in median.items():
            print(
                f"{side:12} {len(bench.texts) / took_s:7.2f} pairs/s  largest difference "
                f"{np.abs(relevant[side] - relevant['ours']).max():.4f}"
            )
        result = {
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
                result[key] = round(peak_mb(rows, Path(name)), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
