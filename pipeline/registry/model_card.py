"""Model card of a version: purpose, origin, metrics and limits, in Markdown, from recorded facts alone."""

import math
from collections.abc import Mapping

from pipeline.config.run import RunConfig
from pipeline.escaping import escape_markdown, markdown_code
from pipeline.evaluation.results import Evaluation, Interval, MetricsSummary
from pipeline.inference.bundle_description import BundleDescription
from pipeline.inference.calibration import Calibration
from pipeline.registry.provenance import code_version, package_sha256, wheel_sha256

SHOWN_METRICS = ("pr_auc", "defect_pr_auc", "roc_auc", "macro_f1", "calibration_error")

WORST_SLICES = 8

LIMITS = """- It has seen queries and ads of the markets below. Other markets, languages and ads are untested.
- Texts are cut to the limits below; the rest is not read.
- Labels carry their annotators' errors, and the metrics above are measured against such labels.
- It predicts relevance. It does not predict whether an ad is lawful, true or safe."""


def model_card(
    config: RunConfig, description: BundleDescription, bundle_sha256: str, evaluation: Evaluation
) -> str:
    """Return the card of an evaluated bundle.

    Args:
        config: The run's config.
        description: Description of the bundle.
        bundle_sha256: Digest of the bundle.
        evaluation: The bundle's evaluation.
    """
    summary = evaluation.summary
    sections = [
        f"# {config.registry.model}, from run {config.name}",
        (
            "Predicts how relevant an ad is to a query, for the tasks below: calibrated probabilities, "
            "labels, and decisions with an abstain band."
        ),
        (
            "## Use\n\nRanking and filtering of ads offline, relabeling, monitoring of relevance by market. "
            "Rows it abstains on are for people."
        ),
        f"## Origin\n\n{_origin_lines(config, description, bundle_sha256)}",
        f"## Install\n\n{_install_lines()}",
        f"## Data\n\n{_data_lines(config, description.training.data_digest, summary)}",
        f"## Metrics on the test split\n\n{_metrics_table(summary)}\n\n{_macro_line(summary)}",
        f"## Calibration and decisions\n\n{_calibration_lines(description.calibration)}",
        f"## Limits\n\n{LIMITS}",
        f"## Worst slices\n\n{_worst_slices(summary)}",
    ]
    return "\n\n".join(sections) + "\n"


def _origin_lines(config: RunConfig, description: BundleDescription, bundle_sha256: str) -> str:
    """Return base model, adapter, training and digest as a list."""
    training, backbone = description.training, description.backbone
    source = markdown_code(backbone.source)
    if backbone.revision:
        source += f" at {markdown_code(backbone.revision)}"
    return "\n".join(
        [
            f"- base model: {source}, {backbone.dtype}, frozen, digest `{backbone.digest[:16]}`",
            (
                f"- adapter: {config.adapter.method}, rank {config.adapter.rank}, "
                f"{training.trainable_parameters:,} trained numbers"
            ),
            (
                f"- training: {training.steps:,} steps on {training.rows:,} rows, fingerprint "
                f"`{training.fingerprint[:16]}`"
            ),
            f"- bundle sha256: `{bundle_sha256}`",
        ]
    )


def _install_lines() -> str:
    """Return how to install the package that registered the version."""
    version, wheel = code_version(), wheel_sha256()
    lines = [f"- package: ads-relevance {version}, digest of its files `{package_sha256()[:16]}`"]
    if wheel is None:
        lines.append("- wheel: none, the version was registered from a checkout; build one with `pip wheel`")
    else:
        file = f"ads_relevance-{version}-py3-none-any.whl"
        lines.append(f"- wheel: `pip install --no-deps 'file:///FOLDER/{file}#sha256={wheel}'`")
    lines.append(
        "- its requirements: `requirements.txt` beside the model; none is `ads-relevance`, which is on no "
        "public index"
    )
    return "\n".join(lines)


def _data_lines(config: RunConfig, data_digest: str, summary: MetricsSummary) -> str:
    """Return split, test rows and markets of each task, and text limits as a list."""
    split = f"split by query: {config.split.valid_share:.0%} valid, {config.split.test_share:.0%} test"
    lines = [f"- data digest `{data_digest[:16]}`; {split}"]
    for name, task in summary.tasks.items():
        markets = ", ".join(escape_markdown(part.name) for part in task.slices if part.by == "market")
        rows = f"{task.rows:,} test rows of {task.queries:,} queries, {task.relevant:,} relevant"
        lines.append(f"- {name}: {rows}; markets {markets}")
    encode = config.encode
    lines.append(
        f"- texts: queries to {encode.max_query_chars} characters, ads to {encode.max_ad_chars}, together "
        f"to {encode.max_tokens} tokens"
    )
    return "\n".join(lines)


def _metrics_table(summary: MetricsSummary) -> str:
    """Return a table with one line per task."""
    columns = ["task", *SHOWN_METRICS, "lexical floor's pr_auc"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, task in summary.tasks.items():
        cells = [_show_interval(task.systems["model"][metric]) for metric in SHOWN_METRICS]
        cells.append(_show_interval(task.systems["lexical"]["pr_auc"]))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _show_interval(interval: Interval) -> str:
    """Return a metric and its 95 % interval as text."""
    if math.isnan(interval.value):
        return "not defined"
    span = "" if math.isnan(interval.low) else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.value:.3f}{span}"


def _macro_line(summary: MetricsSummary) -> str:
    """Return the mean over tasks, and the worst of them."""
    lead = summary.model_minus_lexical_macro_pr_auc
    return (
        f"Macro PR-AUC {_show_interval(summary.macro_pr_auc['model'])}, above the lexical floor by "
        f"{_show_interval(lead)}. Worst task: {summary.worst_task}. "
        "Intervals: 95 %, queries drawn again 1,000 times."
    )


def _calibration_lines(calibrations: Mapping[str, Calibration]) -> str:
    """Return method and thresholds of each task as a list."""
    lines = []
    for name, calibration in calibrations.items():
        above, below = calibration.relevant_at, calibration.irrelevant_below
        relevant = "never" if above is None else f"from {above:.3f}"
        irrelevant = "never" if below is None else f"below {below:.3f}"
        lines.append(
            f"- {name}: {calibration.method}, temperature {calibration.temperature:.3f}; "
            f"relevant {relevant}, irrelevant {irrelevant}; abstains between"
        )
    return "\n".join(lines)


def _worst_slices(summary: MetricsSummary) -> str:
    """Return a table of the measured slices with the lowest PR-AUC."""
    measured = [
        (part.metrics["pr_auc"], name, part)
        for name, task in summary.tasks.items()
        for part in task.slices
        if part.metrics is not None and not part.has_one_class
    ]
    lines = ["| task | slice | rows | relevant | pr_auc |", "|---|---|---|---|---|"]
    for pr_auc, name, part in sorted(measured, key=lambda entry: entry[0].value)[:WORST_SLICES]:
        lines.append(
            f"| {name} | {part.by}: {escape_markdown(part.name)} | {part.rows:,} | {part.relevant:,} | "
            f"{_show_interval(pr_auc)} |"
        )
    return "\n".join(lines)
