"""`relevance validate`: the data gate, then leakage and drift of the accepted rows."""

import logging
from pathlib import Path
from typing import Any

from jobs.cluster import given_cluster
from jobs.command_run import CommandRun
from jobs.console import aligned
from pipeline.config.run import RunConfig
from pipeline.data.reader import data_digest, find_partitions
from pipeline.errors import ConfigError, RelevanceError
from pipeline.storage.filesystem import write_json
from validation.drift.comparison import DriftReport, compare_profiles
from validation.drift.profile import Profile, build_tally, read_profile, write_profile
from validation.drift.rendering import drift_legend, drift_messages, drift_rows, plot_drift
from validation.gate.report import check_report, summary_rows
from validation.gate.runner import GateRun, validate
from validation.leakage.report import find_leakage

logger = logging.getLogger(__name__)


def run_validate(config: RunConfig, run: CommandRun) -> dict[str, Any]:
    """Check the judged rows and accept the good ones. Report and Data Docs are written either way.

    Raises:
        DataRefusedError: too many rows are bad.
        DamagedInputError: a file is damaged.
        ConfigError: the reference of drift cannot be used.
    """
    reference = read_reference(config)  # first: a wrong one is found before the gate's work
    gate = GateRun(
        config.judged_location,
        config.tasks,
        config.validation_dir,
        config.accepted_dir,
        config=config.gate,
        splits=config.split,
    )
    with given_cluster():
        report = validate(gate, run)
        for line in aligned(summary_rows(report)):
            logger.info("  %s", line)
        verdict = "passed" if report.passed else "did NOT pass"
        logger.info(f"  the data {verdict}; Data Docs: {report.data_docs}")
        check_report(report)
        accepted = find_partitions(config.accepted_dir, config.tasks)
        digest = data_digest(accepted)
        inspect_accepted(config, accepted, digest, reference)
    rows = {name: task.accepted for name, task in report.tasks.items()}
    run.set_counts(rows=sum(rows.values()))
    return {
        "data_digest": digest,
        "data_docs": str(report.data_docs),
        "rows": rows,
        "next": run.suggest("train"),
    }


def inspect_accepted(
    config: RunConfig, partitions: dict[str, list[Path]], digest: str, reference: Profile | None
) -> None:
    """Report leakage across splits, and drift from a reference. Neither refuses the data.

    Writes leakage.json and profile.json beside the gate's report, and drift.json and drift.png if there is a
    reference.
    """
    leakage = find_leakage(partitions, config.tasks, config.split)
    write_json(config.validation_dir / "leakage.json", leakage.to_json())
    for message in leakage.messages():
        logger.info(f"  look: {message}")
    tally = build_tally(partitions)
    write_profile(config.profile_path, tally.profile(), digest)
    if reference is None:
        return
    drift = compare_profiles(reference, tally)
    write_json(config.validation_dir / "drift.json", drift.to_json())
    plot_drift(drift, config.validation_dir / "drift.png")
    for line in drift_lines(drift):
        logger.info("%s", line)


def drift_lines(report: DriftReport) -> list[str]:
    """Return a drift report as lines: a table, and a line for each feature that moved most."""
    names, *columns = zip(*drift_rows(report), strict=True)
    right_aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    lines = aligned(list(zip(names, *right_aligned, strict=True)))
    return [drift_legend(report), *lines, *drift_messages(report)]


def read_reference(config: RunConfig) -> Profile | None:
    """Return the profile that gate.reference_profile names; None if the champion has none that can be read.

    Raises:
        ConfigError: The file does not exist, or is the one that this run replaces.
        DamagedInputError: The file is not a profile.
    """
    reference = config.gate.reference_profile
    if reference is None:
        return None
    if reference == "champion":
        try:
            return _champion_profile(config)
        except RelevanceError as error:  # validation does not depend on the registry
            logger.warning(f"  drift not compared: {error}")
            return None
    if reference.resolve() == config.profile_path.resolve():
        raise ConfigError(
            f"gate.reference_profile is the profile that this run replaces: {reference}; name a copy of it, "
            "or the profile of another run"
        )
    if not reference.is_file():
        raise ConfigError(
            f"gate.reference_profile does not exist: {reference}; name the validation/profile.json of a run, "
            "`champion`, or leave it out"
        )
    return read_profile(reference)


def _champion_profile(config: RunConfig) -> Profile | None:
    from pipeline.registry.version_files import find_champion

    champion = find_champion(config)
    if champion is None:
        logger.info(f"  drift not compared: model {config.registry.model} has no champion yet")
        return None
    if not champion.profile_path.is_file():
        logger.info(f"  drift not compared: version {champion.version} was registered without a profile")
        return None
    profile = read_profile(champion.profile_path)
    logger.info(f"  drift is compared with the data of version {champion.version}, the champion")
    return profile
