"""`relevance validate`: the data gate, and what is worth knowing of the rows it let through."""

from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.logs import Console
from pipeline.reader import data_digest, find_partitions
from validation.drift import compare
from validation.drift_view import as_text, plot_drift
from validation.gate import validate
from validation.leakage import find_leakage
from validation.profile import build_tally, read_profile, write_profile
from validation.report import check_report, summary_table


def run_validate(config: RunConfig, console: Console) -> dict[str, Any]:
    """Judge the judged rows and accept the good ones; DataRefusedError when too many are bad. Report and pages are written either way."""
    partitions = find_partitions(config.judged_dir, config.tasks)
    with console.progress("validate", sum(map(len, partitions.values())), "files") as progress:
        report = validate(
            config.judged_dir, config.tasks, config.run_dir / "validation", config.accepted_dir, config=config.gate,
            progress=lambda _, done, __: progress.update(done),
        )  # fmt: skip
    console.say(summary_table(report))
    console.say(f"  the data {'pass' if report.passed else 'do NOT pass'}; Data Docs: {report.data_docs}")
    check_report(report)
    look_at_accepted(config, console)
    digest = data_digest(find_partitions(config.accepted_dir, config.tasks))
    return {"data_digest": digest, "data_docs": str(report.data_docs), "rows": {name: task.accepted for name, task in report.tasks.items()}}


def look_at_accepted(config: RunConfig, console: Console) -> None:
    """Tell of leakage across the splits and of drift from the reference profile; both are told, not refused. Writes leakage.json and
    profile.json, and where there is a reference drift.json and drift.png, beside the gate's report. ConfigError: no such reference."""
    folder, partitions = config.run_dir / "validation", find_partitions(config.accepted_dir, config.tasks)
    leakage = find_leakage(partitions, config.tasks, config.split)
    write_json(folder / "leakage.json", leakage.as_json())
    for sentence in leakage.sentences():
        console.say(f"  look: {sentence}")
    tally = build_tally(partitions)
    write_profile(folder / "profile.json", tally.profile())
    reference = config.gate.reference_profile
    if reference is None:
        return
    if not reference.is_file():
        raise ConfigError(f"gate.reference_profile {reference} does not exist; name the validation/profile.json of a run, or leave it out")
    drift = compare(read_profile(reference), tally)
    write_json(folder / "drift.json", drift.as_json())
    plot_drift(drift, folder / "drift.png")
    console.say(as_text(drift))
