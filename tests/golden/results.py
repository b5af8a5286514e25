"""Results of a run over the planted rows, to compare two versions of the code.

    python -m tests.golden.results --write before.json      at one commit
    python -m tests.golden.results --against before.json    at another; exit 1 unless all bits are equal

The run is in one fixed folder, because recorded files hold paths. tests/jobs/commands/test_run.py compares a
run with results.json on any machine, within a tolerance.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

FOLDER = Path("/tmp/relevance-golden")
# differ from run to run
VOLATILE = {"at", "by", "speed_ratio"}


def collect_results(root: Path) -> dict[str, Any]:
    """Return losses, digests, labels, verdicts and promotions of a `relevance run` in `root`.

    The promotion gate's verdict is that of `relevance evaluate --version 1`; None if it did not run.
    """
    run_dir = root / "runs" / "planted"
    live = [json.loads(line) for line in (run_dir / "training" / "live.jsonl").read_text().splitlines()]
    weights = (run_dir / "bundle" / "weights.safetensors").read_bytes()
    log = sorted((run_dir / "promotions").rglob("*.json"))
    return {
        "losses": {str(line["step"]): line["loss"] for line in live if "step" in line},
        "evaluations": {
            str(line["evaluated_after"]): line["macro_pr_auc"] for line in live if "evaluated_after" in line
        },
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "bundle_sha256": hashlib.sha256((run_dir / "bundle" / "manifest.json").read_bytes()).hexdigest(),
        "labels": read_labels(run_dir / "scores"),
        "data_gate": without_volatile(json.loads((run_dir / "validation" / "report.json").read_text())),
        "evaluation": json.loads((run_dir / "evaluation.json").read_text()),
        "promotion_gate": read_verdict(run_dir / "gate" / "version-1-against-1.json"),
        "promotion_log": [
            without_volatile(json.loads(path.read_text())) for path in log if not path.name.startswith(".")
        ],
    }


def read_labels(scores: Path) -> dict[str, list[Any]]:
    """Return the published labels by row id: probability, expected grade, label, decision."""
    labels: dict[str, list[Any]] = {}
    for manifest in sorted((scores / "manifests").glob("*.json")):
        for file in json.loads(manifest.read_text())["files"]:
            for row in pq.read_table(scores / file["path"]).to_pylist():
                labels[row["row_id"]] = [
                    row[name] for name in ("probability", "expected_grade", "label", "decision")
                ]
    return dict(sorted(labels.items()))


def read_verdict(path: Path) -> Any:
    """Return the promotion gate's verdict without the rule on time; None if there is none."""
    if not path.is_file():
        return None
    verdict = json.loads(path.read_text())
    verdict["rules"] = [rule for rule in verdict["rules"] if rule["rule"] != "throughput"]
    return without_volatile(verdict)


def without_volatile(value: Any) -> Any:
    """Return a JSON value without the keys in VOLATILE."""
    if isinstance(value, dict):
        return {name: without_volatile(inner) for name, inner in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [without_volatile(inner) for inner in value]
    return value


def run_planted() -> dict[str, Any]:
    """Run the planted rows in FOLDER and return their results."""
    from tests.support.commands import relevance_in_process
    from tests.support.planted import planted_config, write_config, write_planted
    from tests.support.tiny import write_tiny_llama

    shutil.rmtree(FOLDER, ignore_errors=True)
    write_planted(FOLDER)
    config = write_config(
        FOLDER / "planted.yaml", planted_config(FOLDER, str(write_tiny_llama(FOLDER / "llama")))
    )
    run = relevance_in_process("run", "--config", str(config), cwd=FOLDER)
    assert run.returncode == 0, run.stderr
    gate = relevance_in_process("evaluate", "--config", str(config), "--version", "1", cwd=FOLDER)
    assert gate.returncode == 1, f"no version is better than itself: {gate.stderr}"
    return collect_results(FOLDER)


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Return a line for each place where two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [*found, *(name for name in expected if name not in found)]
        return [
            line
            for name in names
            for line in differences(found.get(name), expected.get(name), f"{where}.{name}")
        ]
    return [] if found == expected else [f"{where.removeprefix('.')}: {found!r}, expected {expected!r}"]


def main() -> None:
    """Write the results of this commit, or compare them with those of another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    results = run_planted()
    if arguments.write:
        arguments.write.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.against:
        found = differences(json.loads(json.dumps(results)), json.loads(arguments.against.read_text()))
        print("\n".join(found) or "equal")
        raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
