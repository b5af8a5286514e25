"""Registered versions in MLflow, with everything needed to evaluate and serve them.

The champion is decided by pipeline/registry/promotion_log.py.
"""

import math
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from models.files import parse_json, remove_tree, temporary_path
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.evaluation.results import Evaluation, MetricsSummary
from pipeline.evaluation.score_reference import parse_reference
from pipeline.inference.bundle_description import BundleDescription, read_described_bundle
from pipeline.registry.mlflow_client import connect_mlflow, create_run, find_run
from pipeline.registry.model_card import model_card
from pipeline.registry.promotion_entries import GateTag
from pipeline.registry.promotion_gate import GateReport
from pipeline.registry.promotion_log import PromotionLog
from pipeline.registry.provenance import (
    code_version,
    package_sha256,
    pinned_requirements,
    wheel_sha256,
)
from pipeline.registry.run_tracker import COMMAND_TAG
from pipeline.registry.served_version import BUNDLE_DIR, FILES, LOADER, RecordedVersion
from pipeline.storage.filesystem import canonical_json, json_sha256, read_json, write_bytes

NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter: not a number

REQUIRED_TAGS = {"bundle_sha256", "data_gate", "macro_pr_auc", "lexical_macro_pr_auc"}


def register_version(
    config: RunConfig, bundle_dir: Path, evaluation: Evaluation, command_run_id: str = ""
) -> str:
    """Register a bundle under config.registry.model with alias challenger, and return the version.

    A bundle that is registered already keeps its version.

    Raises:
        ConfigError: The evaluation is of another bundle.
        DamagedInputError: The bundle is damaged or has no canary rows.
    """
    bundle, description = read_described_bundle(bundle_dir)
    parse_reference(bundle, description.tasks)
    if evaluation.bundle_sha256 != bundle.sha256:
        raise ConfigError(
            f"evaluation is of another bundle than {bundle_dir}; run `relevance evaluate` with this config "
            "again"
        )
    client = connect_mlflow(config.tracking_uri)
    log = PromotionLog.from_config(config)
    version = _find_version(client, log, bundle.sha256)
    if version is None:
        check_profile(config.profile_path, description.training.data_digest)
        run_id = find_run(client, config, description.training.fingerprint) or create_run(client, config)
        _log_metrics(client, run_id, evaluation.summary)
        if (plots := config.run_dir / "plots").is_dir():
            client.log_artifacts(run_id, str(plots), "plots")
        card = config.run_dir / "model_card.md"
        write_bytes(card, model_card(config, description, bundle.sha256, evaluation).encode())
        passed = data_gate_passed(config.validation_dir)
        tags = _version_tags(bundle.sha256, description, evaluation.summary, passed)
        tags["promotion_log"] = str(log.folder)
        tags |= {COMMAND_TAG: command_run_id} if command_run_id else {}
        _log_version(config, run_id, bundle_dir, card, tags)
        version = _find_version(client, log, bundle.sha256)
        assert version is not None
    # an earlier command may have died after it registered the version
    if not client.get_model_version(config.registry.model, version).description:
        text = model_card(config, description, bundle.sha256, evaluation)
        client.update_model_version(config.registry.model, version, description=text)
    client.set_registered_model_alias(config.registry.model, "challenger", version)
    return version


def check_profile(path: Path, data_digest: str) -> None:
    """Raise ConfigError unless `path` is the profile of the data with this digest."""
    if not path.is_file() or read_json(path).get("data_digest") != data_digest:
        raise ConfigError(
            f"profile is not of the rows that the bundle was trained on: {path}; run `relevance validate` "
            "with this config again"
        )


def data_gate_passed(validation_dir: Path) -> bool:
    """Return True if the labeled rows of a run passed the data gate the last time."""
    report = validation_dir / "report.json"
    return report.is_file() and bool(read_json(report)["passed"])


def get_version(client: Any, model: str, version: str) -> Any:
    """Return MLflow's record of a version.

    Raises:
        ConfigError: The version is not registered, or spelled otherwise than its record.
    """
    from mlflow.exceptions import MlflowException

    try:
        record = client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code not in NOT_FOUND_CODES:
            raise
        raise ConfigError(
            f"version {version} of model {model} is not registered ({error.message}); run `relevance "
            "register` first"
        ) from error
    # MLflow reads 01 as 1, but reports and folders have the version in their names
    if str(record.version) != version:
        raise ConfigError(f"version not valid: {version!r}; write it as {record.version}")
    return record


def check_registered(record: Any) -> None:
    """Raise ConfigError unless `relevance register` made the version."""
    if not record.tags.keys() >= REQUIRED_TAGS:
        raise ConfigError(
            f"version {record.version} of model {record.name} was not made by `relevance register`; name "
            "one that was"
        )


def read_gate_report(record: Any) -> GateReport | None:
    """Return the gate's last report on a version; None if the gate has not judged it.

    Raises:
        DamagedInputError: The report is missing, or it or the tag that sums it up was altered.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    tag = GateTag.from_tags(record.tags)
    if tag is None:
        return None
    path = _report_path(str(record.version), tag.against)
    with tempfile.TemporaryDirectory() as folder:
        source = f"runs:/{record.run_id}/{path}"
        try:
            content = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder)).read_bytes()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise DamagedInputError(
                f"gate report missing: {path} of MLflow run {record.run_id}; evaluate version "
                f"{record.version} again"
            ) from error
    try:
        fields = parse_json(content)
        report = GateReport.from_json(fields) if json_sha256(fields) == tag.sha256 else None
    except ValueError:
        report = None
    if report is None or report.to_tag() != tag:
        raise DamagedInputError(
            f"gate report or tag was altered: {path} of MLflow run {record.run_id}; evaluate version "
            f"{record.version} again"
        )
    return report


def write_gate_report(client: Any, model: str, report: GateReport) -> None:
    """Store the gate's report as an artifact of the version's run, and its summary as a tag.

    `promote` reads the tag. It is one tag, so that no reader sees half of a verdict.
    """
    verdict = report.verdict
    record = get_version(client, model, verdict.version)
    path = _report_path(verdict.version, verdict.against)
    client.log_text(record.run_id, canonical_json(report.to_json()), path)
    client.set_model_version_tag(model, verdict.version, "gate", canonical_json(report.to_tag().to_json()))


def _log_version(config: RunConfig, run_id: str, bundle_dir: Path, card: Path, tags: dict[str, str]) -> None:
    """Log the bundle as a model that the installed package loads, without code or pickle, and register it."""
    import mlflow

    from pipeline.registry.pyfunc_model import signature

    recorded = RecordedVersion(config.registry.model, tags["bundle_sha256"], tags["package_sha256"])
    staged = temporary_path(config.run_dir / "registered")
    try:
        files = staged / FILES
        shutil.copytree(bundle_dir, files / BUNDLE_DIR)
        shutil.copyfile(config.profile_path, files / config.profile_path.name)
        shutil.copyfile(card, files / card.name)
        with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
            # MLflow would load the model to try an input example, and asks for one
            warnings.filterwarnings("ignore", ".*input example was not provided")
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module=LOADER,
                data_path=str(files),
                signature=signature(),
                pip_requirements=pinned_requirements({"quantized"} if config.backbone.quantization else ()),
                metadata=recorded.to_metadata(),
            )
    finally:
        remove_tree(staged)
    mlflow.register_model(info.model_uri, config.registry.model, tags=tags)


def _version_tags(
    sha256: str, description: BundleDescription, summary: MetricsSummary, gate_passed: bool
) -> dict[str, str]:
    """Return the tags of a version.

    Args:
        sha256: Digest of the bundle.
        description: The bundle's description.
        summary: Metrics of the bundle.
        gate_passed: The data gate's verdict on the training rows.
    """
    wheel = wheel_sha256()
    return {
        "bundle_sha256": sha256,
        "package_sha256": package_sha256(),
        **({"wheel_sha256": wheel} if wheel else {}),
        "data_digest": description.training.data_digest,
        "fingerprint": description.training.fingerprint,
        "backbone_digest": description.backbone.digest,
        "data_gate": "passed" if gate_passed else "refused",
        "code_version": code_version(),
        "macro_pr_auc": f"{summary.macro_pr_auc['model'].value:.6f}",
        "lexical_macro_pr_auc": f"{summary.macro_pr_auc['lexical'].value:.6f}",
    }


def _log_metrics(client: Any, run_id: str, summary: MetricsSummary) -> None:
    """Log the test metrics of every task and their means."""
    for name, task in summary.tasks.items():
        for metric, interval in task.systems["model"].items():
            if not math.isnan(interval.value):
                client.log_metric(run_id, _metric_name(f"test_{metric}_{name}"), interval.value)
    for system, interval in summary.macro_pr_auc.items():
        client.log_metric(run_id, f"test_macro_pr_auc_{system}", interval.value)


def _metric_name(name: str) -> str:
    """Replace characters that MLflow refuses in metric names; label names may be any text."""
    return re.sub(r"[^\w.\- ]", "_", name)


def _find_version(client: Any, log: PromotionLog, sha256: str) -> str | None:
    """Return the version of a bundle; None if there is none.

    A lost answer or a concurrent process may have made several. Then the first promoted one is returned, or
    else the first. The others are deleted unless an alias or the promotion log names them.
    """
    records = client.search_model_versions(f"name = '{log.model}' and tags.bundle_sha256 = '{sha256}'")
    promoted = {entry.version for entry in log.read(client)}
    versions = sorted(
        (str(record.version) for record in records),
        key=lambda version: (version not in promoted, int(version)),
    )
    if len(versions) > 1:
        aliases = client.get_registered_model(log.model).aliases
        named = promoted | {str(version) for version in aliases.values()}
        for other in versions[1:]:
            if other not in named:
                _delete_version(client, log.model, other)
    return versions[0] if versions else None


def _delete_version(client: Any, model: str, version: str) -> None:
    """Delete a version, unless another process was faster."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_model_version(model, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _report_path(version: str, against: str) -> str:
    """Return the path of a gate report among a run's artifacts."""
    return f"gate/version-{version}-against-{against}.json"
