"""What a scoring run prints at its end."""

from collections.abc import Mapping
from typing import Any


def spent_lines(record: Mapping[str, Any], num_actors: int) -> list[str]:
    """What a run's time and tokens went into, for people; nothing where nothing was judged."""
    spent, seconds = record["spent"], record["seconds"]
    if not spent["tokens_in"]:
        return []
    computed = (
        f"{spent['tokens_computed'] / spent['tokens_in']:.2f} of {spent['tokens_in']:,} tokens were computed"
    )
    busy = f"{spent['model_s'] / (seconds * num_actors):.0%} of the time in the model, starting included"
    return [f"{computed}; {busy}; arithmetic at {record['matmul_efficiency'] or 0:.0%} of a measured matmul"]


def drift_lines(record: dict[str, Any], warn: float) -> list[str]:
    """What of a run's scores is spread otherwise than before, for people."""
    told = {"against_last_run": "the last run", "against_test_rows": "the version's test rows"}
    lines = []
    for against, shown in told.items():
        for one in record["drift"][against]:
            if one["psi"] >= warn:
                rates = ", ".join(
                    f"{before:.0%} -> {now:.0%}"
                    for before, now in zip(one["label_rates_before"], one["label_rates"], strict=True)
                )
                moved = f"scores of {one['task']}, {one['market']}, moved against {shown}"
                lines.append(f"{moved}: stability index {one['psi']:.2f}; label rates {rates}")
    return lines
