"""Summary lines that a scoring run prints at its end."""

from pipeline.scoring.scoring_record import ScoringRecord


def usage_lines(record: ScoringRecord, num_actors: int) -> list[str]:
    """Return a line on the tokens and the time of a run; nothing if no row was scored."""
    usage = record.usage
    if not usage.tokens_in:
        return []
    computed_share = usage.tokens_computed / usage.tokens_in
    model_share = usage.model_s / (record.seconds * num_actors)
    efficiency = usage.matmul_efficiency or 0
    return [
        f"{computed_share:.2f} of {usage.tokens_in:,} tokens were computed; "
        f"{model_share:.0%} of the time in the model, start-up included; "
        f"arithmetic at {efficiency:.0%} of a measured matmul"
    ]


def drift_lines(record: ScoringRecord, warn: float) -> list[str]:
    """Return a line for each task and market whose scores drifted by `warn` (PSI) or more."""
    lines = []
    references = (
        (record.drift.against_last_run, "the last run"),
        (record.drift.against_test_rows, "the version's test rows"),
    )
    for drifts, reference in references:
        for drift in drifts:
            if drift.psi < warn:
                continue
            rates = ", ".join(
                f"{before:.0%} -> {now:.0%}"
                for before, now in zip(drift.label_rates_before, drift.label_rates, strict=True)
            )
            lines.append(
                f"scores of {drift.task}, {drift.market}, drifted from {reference}: "
                f"stability index {drift.psi:.2f}; label rates {rates}"
            )
    return lines
