"""`relevance validate`: the data gate, and what is worth knowing of the rows it let through."""

from pathlib import Path
from typing import Any

from jobs.cluster import given_cluster
from jobs.console import Console
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError, RetryableError
from pipeline.storage.filesystem import write_json
from validation.drift.comparison import compare
from validation.drift.profile import build_tally, read_profile, write_profile
from validation.drift.rendering import as_text, plot_drift
from validation.gate.report import check_report, summary_table
from validation.gate.runner import GateRun, validate
from validation.leakage.report import find_leakage


def run_validate(config: RunConfig, console: Console) -> dict[str, Any]:
    """Judge the judged rows and accept the good ones; DataRefusedError when too many are bad. Report and
    pages are written either way.
    """
    partitions = find_partitions(config.judged_dir, config.tasks)
    with (
        given_cluster(),
        console.progress("validate", sum(map(len, partitions.values())), "files") as progress,
    ):
        run = GateRun(
            config.judged_dir, config.tasks, config.validation_dir, config.accepted_dir, config=config.gate
        )
        report = validate(run, progress=lambda _, done, __: progress.update(done))
    console.say(summary_table(report))
    console.say(f"  the data {'pass' if report.passed else 'do NOT pass'}; Data Docs: {report.data_docs}")
    check_report(report)
    accepted = find_partitions(config.accepted_dir, config.tasks)
    digest = data_digest(accepted)
    look_at_accepted(config, accepted, digest, console)
    return {
        "data_digest": digest,
        "data_docs": str(report.data_docs),
        "rows": {name: task.accepted for name, task in report.tasks.items()},
    }


def look_at_accepted(
    config: RunConfig, partitions: dict[str, list[Path]], digest: str, console: Console
) -> None:
    """Tell of leakage across the splits and of drift from the reference profile; both are told, not refused.
    Writes leakage.json and profile.json, and where there is a reference drift.json and drift.png, beside the
    gate's report. ConfigError: no such reference.
    """
    leakage = find_leakage(partitions, config.tasks, config.split)
    write_json(config.validation_dir / "leakage.json", leakage.as_json())
    for sentence in leakage.sentences():
        console.say(f"  look: {sentence}")
    tally = build_tally(partitions)
    write_profile(config.profile_path, tally.profile(), digest)
    reference = find_reference(config, console)
    if reference is None:
        return
    drift = compare(read_profile(reference), tally)
    write_json(config.validation_dir / "drift.json", drift.as_json())
    plot_drift(drift, config.validation_dir / "drift.png")
    console.say(as_text(drift))


def find_reference(config: RunConfig, console: Console) -> Path | None:
    """The profile that gate.reference_profile names; None where there is none to be had. ConfigError: the
    file does not exist.
    """
    reference = config.gate.reference_profile
    if isinstance(reference, Path) and not reference.is_file():
        raise ConfigError(
            f"gate.reference_profile {reference} does not exist; name the validation/profile.json of a "
            "run, champion, or leave it out"
        )
    if reference != "champion":
        return reference
    from pipeline.registry.version_files import find_champion

    try:
        champion = find_champion(config)
    except RetryableError as error:  # validation does not hang on the registry
        console.say(f"  drift was not looked at: {error}")
        return None
    if champion is None or not champion.profile_path.is_file():
        has = (
            f"version {champion.version} was registered without a profile"
            if champion
            else f"model {config.registry.model} has no champion yet"
        )
        console.say(f"  drift was not looked at: {has}")
        return None
    console.say(f"  compared with the data of version {champion.version}, the champion:")
    return champion.profile_path
