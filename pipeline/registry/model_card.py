"""A version's model card: what it is for, what it was made of, what it can do, where it stops. Markdown,
written from recorded facts alone.
"""

from typing import Any

from pipeline.config.run import RunConfig

SHOWN = ("pr_auc", "defect_pr_auc", "roc_auc", "macro_f1", "calibration_error")

LIMITS = """- It has seen queries and ads of the markets below. Other markets, languages and ads are untested.
- Texts are cut to the limits below; what stands beyond them is not read.
- Labels carry their annotators' errors, and the figures above are measured against such labels.
- It judges relevance. It does not judge whether an ad is lawful, true or safe."""


def model_card(
    config: RunConfig, description: dict[str, Any], bundle_sha256: str, evaluation: dict[str, Any]
) -> str:
    """The card of a bundle that was evaluated."""
    training, backbone = description["training"], description["backbone"]
    sections = [
        f"# {config.registry.model}, from run {config.name}",
        (
            "Judges how relevant an ad is to a query, for the tasks below: calibrated probabilities, "
            "labels, and decisions with an abstain band."
        ),
        (
            "## Use\n\nOrdering and filtering of ads offline, relabelling, monitoring of relevance by "
            "market. Rows it abstains on are for people."
        ),
        f"## Made of\n\n{made_of(config, training, backbone, bundle_sha256)}",
        f"## Data\n\n{data_lines(config, training, evaluation)}",
        f"## Figures on the test split\n\n{figures_table(evaluation)}\n\n{macro_line(evaluation)}",
        f"## Calibration and decisions\n\n{calibration_lines(description)}",
        f"## Limits\n\n{LIMITS}",
        f"## Worst slices\n\n{worst_slices(evaluation)}",
    ]
    return "\n\n".join(sections) + "\n"


def made_of(config: RunConfig, training: dict[str, Any], backbone: dict[str, Any], bundle_sha256: str) -> str:
    """Base model, adapter, training."""
    source = f"`{backbone['source']}`" + (f" at `{backbone['revision']}`" if backbone["revision"] else "")
    return "\n".join(
        [
            f"- base model: {source}, {backbone['dtype']}, frozen, digest `{backbone['digest'][:16]}`",
            (
                f"- adapter: {config.adapter.method}, rank {config.adapter.rank}, "
                f"{training['trainable_parameters']:,} trained numbers"
            ),
            (
                f"- training: {training['steps']:,} steps on {training['rows']:,} rows, fingerprint "
                f"`{training['fingerprint'][:16]}`"
            ),
            f"- bundle sha256: `{bundle_sha256}`",
        ]
    )


def data_lines(config: RunConfig, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Tasks, rows, markets, split."""
    split = f"split by query: {config.split.valid_share:.0%} valid, {config.split.test_share:.0%} test"
    lines = [f"- data digest `{training['data_digest'][:16]}`; {split}"]
    for name, figures in evaluation["tasks"].items():
        markets = ", ".join(part["slice"] for part in figures["slices"] if part["by"] == "market")
        rows = (
            f"{figures['rows']:,} test rows of {figures['queries']:,} queries, {figures['relevant']:,} "
            "relevant"
        )
        lines.append(f"- {name}: {rows}; markets {markets}")
    encode = config.encode
    lines.append(
        f"- texts: queries to {encode.max_query_chars} characters, ads to {encode.max_ad_chars}, together "
        f"to {encode.max_tokens} tokens"
    )
    return "\n".join(lines)


def figures_table(evaluation: dict[str, Any]) -> str:
    """One line a task."""
    lines = ["| task | " + " | ".join(SHOWN) + " | lexical floor's pr_auc |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, figures in evaluation["tasks"].items():
        cells = [with_interval(figures["model"][figure]) for figure in SHOWN]
        lines.append(
            f"| {name} | " + " | ".join([*cells, with_interval(figures["lexical"]["pr_auc"])]) + " |"
        )
    return "\n".join(lines)


def with_interval(figure: dict[str, Any]) -> str:
    """A figure and its 95 % interval."""
    if figure["value"] is None:
        return "not defined"
    span = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{span}"


def macro_line(evaluation: dict[str, Any]) -> str:
    """The mean over tasks, and the worst of them."""
    macro, lead = evaluation["macro_pr_auc"]["model"], evaluation["model_minus_lexical_macro_pr_auc"]
    return (
        f"Macro PR-AUC {with_interval(macro)}, above the lexical floor by {with_interval(lead)}. "
        f"Worst task: {evaluation['worst_task']}."
        " Intervals: 95 %, queries drawn again 1,000 times."
    )


def calibration_lines(description: dict[str, Any]) -> str:
    """Method and thresholds of each task."""
    lines = []
    for name, calibration in description["calibration"].items():
        above, below = calibration["relevant_at"], calibration["irrelevant_below"]
        decisions = (
            f"relevant {'never' if above is None else f'from {above:.3f}'}, irrelevant "
            f"{'never' if below is None else f'below {below:.3f}'}"
        )
        lines.append(
            f"- {name}: {calibration['method']}, temperature {calibration['temperature']:.3f}; "
            f"{decisions}; abstains between"
        )
    return "\n".join(lines)


def worst_slices(evaluation: dict[str, Any], count: int = 8) -> str:
    """The slices with the lowest PR-AUC among those measured."""
    found = [
        (part["figures"]["pr_auc"]["value"], name, part)
        for name, figures in evaluation["tasks"].items()
        for part in figures["slices"]
        if "figures" in part and 0 < part["relevant"] < part["rows"]
    ]
    lines = ["| task | slice | rows | relevant | pr_auc |", "|---|---|---|---|---|"]
    for _, name, part in sorted(found, key=lambda one: one[0])[:count]:
        pr_auc = with_interval(part["figures"]["pr_auc"])
        lines.append(
            f"| {name} | {part['by']}: {part['slice']} | {part['rows']:,} | {part['relevant']:,} | {pr_auc} |"
        )
    return "\n".join(lines)
