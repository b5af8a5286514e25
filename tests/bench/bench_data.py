"""How fast and in how much memory data pass the gate: `python tests/bench/bench_data.py [--rows N] [--large N] [--repeats N]`.

Prints tables, and as its last line one JSON object. Every figure is of a process of its own, so that its peak memory is its own; of times the
sides take turns and the medians count. What a first import costs is not counted.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_up_rows import write_made_up

TASKS = ("one", "two")
LABELS = ("bad", "fair", "good")


def tasks() -> tuple[Any, ...]:
    """The tasks of the made-up rows."""
    from pipeline.tasks import Task

    return tuple(Task(name=name, labels=LABELS, relevant_from=1, template="{query} {ad_title} {ad_description}") for name in TASKS)


def plain_copy(data_dir: Path, out_dir: Path) -> None:
    """The same parquet, merely read and written."""
    import pyarrow.parquet as pq

    for path in sorted(data_dir.rglob("*.parquet")):
        target = out_dir / path.relative_to(data_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            pq.ParquetFile(path, page_checksum_verification=True) as file,
            pq.ParquetWriter(target, file.schema_arrow, compression="zstd", write_page_checksum=True) as writer,
        ):
            for batch in file.iter_batches(65_536):
                writer.write_batch(batch)


def gate_and_split(data_dir: Path, out_dir: Path) -> None:
    """The gate, and the side of every accepted row."""
    from pipeline.split import SplitConfig, split_rows
    from validation.gate import validate

    report = validate(data_dir, tasks(), out_dir / "validation", out_dir / "accepted")
    assert report.passed, report.failures[:3]
    import pyarrow.parquet as pq

    for path in sorted((out_dir / "accepted").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(65_536, columns=["query"]):
                split_rows(batch.column(0).to_pylist(), SplitConfig())


def pandas_and_gx(data_dir: Path, out_dir: Path) -> None:
    """The same job with pandas and Great Expectations alone, one whole frame a task: the same suites name the bad rows, pairs met again are
    dropped by their normalised text, both parts are written, and every row is given its side."""
    import great_expectations as gx
    import pandas as pd

    from pipeline.schema import TEXT_COLUMNS
    from pipeline.split import SplitConfig, normalise_query, split_rows
    from validation.expectations import build_suite

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("rows")
    for task in tasks():
        frame = pd.read_parquet(data_dir / f"task={task.name}", dtype_backend="pyarrow", partitioning=None)
        batch = source.add_dataframe_asset(task.name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        results = batch.validate(build_suite(task), result_format={"result_format": "COMPLETE"}).results
        bad = sorted({row for result in results for row in result.result.get("unexpected_index_list") or ()})
        assert len(bad) == len(frame) // 10_000, "the made-up rows hold one bad row in 10,000"
        good = frame.drop(index=bad)
        normal = pd.DataFrame({name: good[name].fillna("").map(normalise_query) for name in TEXT_COLUMNS})
        conflicts = good["label"].groupby([normal[name] for name in TEXT_COLUMNS]).nunique().gt(1).sum()
        again = normal.assign(label=good["label"]).duplicated()
        assert not conflicts and not again.any(), "the made-up rows hold no pair twice"
        split_rows(good["query"], SplitConfig())
        good.to_parquet(out_dir / f"{task.name}.parquet", compression="zstd")
        frame.loc[bad].to_parquet(out_dir / f"{task.name}-quarantine.parquet", compression="zstd")


SIDES: dict[str, Callable[[Path, Path], None]] = {"copy": plain_copy, "gate": gate_and_split, "pandas": pandas_and_gx}


def run_side(side: str, data_dir: Path) -> dict[str, float]:
    """Seconds and peak memory in MB of one side in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--side", side, "--data", str(data_dir)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def be_side(side: str, data_dir: Path) -> None:
    """What `run_side` starts: the side once on a few rows to load its libraries, then for the record."""
    with tempfile.TemporaryDirectory(dir=data_dir.parent) as warm, tempfile.TemporaryDirectory(dir=data_dir.parent) as out:
        write_made_up(Path(warm) / "data", 200, TASKS)
        SIDES[side](Path(warm) / "data", Path(warm))
        start = time.perf_counter()
        SIDES[side](data_dir, Path(out))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    """All figures; about 10 minutes for 10 million rows on two cores."""
    parser = argparse.ArgumentParser(description="The data gate's speed and memory")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        be_side(arguments.side, arguments.data)
        return
    root = Path(tempfile.mkdtemp(prefix="bench_data"))
    try:
        write_made_up(root / "rows", arguments.rows, TASKS)
        seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.repeats):
            for side, figures in seen.items():
                figures.append(run_side(side, root / "rows"))
        write_made_up(root / "large", arguments.large, TASKS)
        large = run_side("gate", root / "large")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    seconds = {side: statistics.median(one["seconds"] for one in figures) for side, figures in seen.items()}
    peak = {side: max(one["peak_mb"] for one in figures) for side, figures in seen.items()}
    lines = [(side, arguments.rows, seconds[side], peak[side]) for side in SIDES]
    for side, rows, took_s, peak_mb in [*lines, ("gate", arguments.large, large["seconds"], large["peak_mb"])]:
        print(f"  {side:8} {rows:>12,} rows  {took_s:8.1f} s  {rows / took_s:>12,.0f} rows/s  peak {peak_mb:,.0f} MB")
    result = {
        "gate_speed_over_pandas_gx": round(seconds["pandas"] / seconds["gate"], 3),
        "gate_time_over_plain_copy": round(seconds["gate"] / seconds["copy"], 3),
        "peak_mb_1m": round(peak["gate"], 1),
        "peak_mb_10m": round(large["peak_mb"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
