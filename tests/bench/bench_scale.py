"""Memory and time at sizes of production, on made-up rows.

    python -m tests.bench.bench_scale [FIGURE ...]

Measures all figures, or those named. Each measurement is a new process, so that its peak memory is its own.
Prints one JSON line. The largest figure needs 4 GB of disk in the temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.places import ROOT


def run_module(name: str, *arguments: object) -> dict[str, Any]:
    """Return the JSON line that a module of tests.bench.support prints in a new process."""
    command = [sys.executable, "-m", f"tests.bench.support.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def floor_peak(_: Path) -> dict[str, Any]:
    """Measure the peak memory of a lexical floor of 1 M train rows."""
    measured = run_module("floor_memory", 1_000_000)
    return {"floor_peak_mb_1m": measured["peak_mb"], "floor_peak": measured}


def worker_peak(folder: Path) -> dict[str, Any]:
    """Measure the memory of a training worker's rows: anonymous memory that 10 M rows need, over 1 M rows."""
    peaks = {
        name: run_module("worker_memory", folder / name, rows)
        for name, rows in (("1m", 1_000_000), ("10m", 10_000_000))
    }
    return {
        "worker_peak_mb_10m_over_1m": round(peaks["10m"]["anon_mb"] / peaks["1m"]["anon_mb"], 2),
        "worker_peak": peaks,
    }


def labels_peak(_: Path) -> dict[str, Any]:
    """Measure the peak memory of writing 200,000 and 2,000,000 labels as one file."""
    return run_module("label_memory")


def repeat_search(folder: Path) -> dict[str, Any]:
    """Measure the search for repeated rows of the data gate: time for 30 M rows, over 1 M, over 30."""
    found = {
        name: run_module("repeat_search", folder / name, rows)
        for name, rows in (("1m", 1_000_000), ("30m", 30_000_000))
    }
    ratio = found["30m"]["search_s"] / found["1m"]["search_s"] / 30
    return {"repeat_search_30m_over_1m": round(ratio, 2), "repeat_search": found}


def planning(_: Path) -> dict[str, Any]:
    """Measure plans over 20,000 published units in a slow bucket, with nothing new and with 1,000 new."""
    measured = run_module("plan_scale")
    return {
        "plan_s_20k_units": measured["nothing_new"]["seconds"],
        "plan_s_1k_new": measured["some_new"]["seconds"],
        "plan": measured,
    }


def unit_overhead(_: Path) -> dict[str, Any]:
    """Measure the scoring loop at 10,000 units of two rows, without the model."""
    return run_module("unit_overhead")


FIGURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "floor_peak_mb_1m": floor_peak,
    "worker_peak_mb_10m_over_1m": worker_peak,
    "labels_peak_mb_2m_over_200k": labels_peak,
    "repeat_search_30m_over_1m": repeat_search,
    "plan_s_20k_units": planning,
    "plan_s_1k_new": planning,
    "unit_overhead_ms": unit_overhead,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    names = parser.parse_args(arguments).figures or list(FIGURES)
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        parser.error(f"figure unknown: {', '.join(unknown)}; use {', '.join(FIGURES)}")
    measured: dict[str, Any] = {}
    for measure in dict.fromkeys(FIGURES[name] for name in names):
        with tempfile.TemporaryDirectory() as folder:
            measured |= measure(Path(folder))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
