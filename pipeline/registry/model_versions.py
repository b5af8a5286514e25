"""Versions in MLflow, with everything they need to be judged and served; which one is champion,
pipeline/registry/promotion_log.py says.
"""

import json
import re
from pathlib import Path
from typing import Any

from models.serialization.bundle import read_bundle
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.registry.mlflow_client import experiment_id, find_run, mlflow_client
from pipeline.registry.model_card import model_card
from pipeline.registry.promotion_log import gate_tag, read_promotions
from pipeline.registry.provenance import code_version
from pipeline.storage.filesystem import canonical_json, json_sha256, read_json

BUNDLE_ARTIFACT = "bundle"

# MLflow's answers where there is no such version, or it is no number
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def register_version(config: RunConfig, bundle_dir: Path, evaluation: dict[str, Any]) -> str:
    """Register a bundle under config.registry.model with alias challenger; returns the version. The same
    bundle stays one version.

    ConfigError: the figures are of another bundle.
    """
    client = mlflow_client(config)
    bundle = read_bundle(bundle_dir)
    if evaluation["bundle_sha256"] != bundle.sha256:
        raise ConfigError(
            f"the figures are of another bundle than {bundle_dir}; run `relevance evaluate` with this "
            "config again"
        )
    version = version_of_bundle(config, client, bundle.sha256)
    if version is None:
        check_profile(config.profile_path, bundle.description["training"]["data_digest"])
        run_id = find_run(client, config, bundle.description["training"]["fingerprint"])
        if run_id is None:
            run_id = str(client.create_run(experiment_id(client, config), run_name=config.name).info.run_id)
        log_metrics(client, run_id, evaluation)
        if (plots := config.run_dir / "plots").is_dir():
            client.log_artifacts(run_id, str(plots), "plots")
        card = config.run_dir / "model_card.md"
        card.write_text(model_card(config, bundle.description, bundle.sha256, evaluation), encoding="utf-8")
        log_version(
            config,
            run_id,
            bundle_dir,
            card,
            version_tags(bundle.sha256, bundle.description, evaluation, data_passed(config)),
        )
        version = version_of_bundle(config, client, bundle.sha256)
        assert version is not None
        client.update_model_version(
            config.registry.model, version, description=card.read_text(encoding="utf-8")
        )
        client.set_terminated(run_id)
    client.set_registered_model_alias(config.registry.model, "challenger", version)
    return version


def check_profile(path: Path, data_digest: str) -> None:
    """ConfigError: `path` is no profile of the data of that digest."""
    if not path.is_file() or read_json(path).get("data_digest") != data_digest:
        raise ConfigError(
            f"{path} is not the profile of the rows that the bundle was trained on; run `relevance "
            "validate` with this config again"
        )


def log_version(config: RunConfig, run_id: str, bundle_dir: Path, card: Path, tags: dict[str, str]) -> None:
    """Log the bundle as a pyfunc model from code, no pickle, with the profile of its data and its card, and
    register it.
    """
    import mlflow

    from pipeline.registry.pyfunc_model import input_example, signature

    artifacts = {
        BUNDLE_ARTIFACT: str(bundle_dir),
        "data_profile": str(config.profile_path),
        "model_card": str(card),
    }
    reference = config.run_dir / "score_reference.json"
    if reference.is_file() and read_json(reference)["bundle_sha256"] == tags["bundle_sha256"]:
        artifacts["score_reference"] = str(reference)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_code.py")),
            artifacts=artifacts,
            signature=signature(),
            input_example=input_example(config.tasks[0].name),
            pip_requirements=["ads-relevance"],
        )
    mlflow.register_model(info.model_uri, config.registry.model, tags=tags)


def version_tags(
    sha256: str, description: dict[str, Any], evaluation: dict[str, Any], gate_passed: bool
) -> dict[str, str]:
    """What a version says of itself in the registry. `gate_passed`: the data gate's verdict on the rows it
    was trained on.
    """
    return {
        "bundle_sha256": sha256,
        "data_digest": description["training"]["data_digest"],
        "fingerprint": description["training"]["fingerprint"],
        "backbone_digest": description["backbone"]["digest"],
        "data_gate": "passed" if gate_passed else "refused",
        "code_version": code_version(),
        "macro_pr_auc": f"{evaluation['macro_pr_auc']['model']['value']:.6f}",
        "lexical_macro_pr_auc": f"{evaluation['macro_pr_auc']['lexical']['value']:.6f}",
    }


def data_passed(config: RunConfig) -> bool:
    """Whether the judged rows of the config passed the data gate the last time."""
    report = config.validation_dir / "report.json"
    return report.is_file() and bool(read_json(report)["passed"])


def log_metrics(client: Any, run_id: str, evaluation: dict[str, Any]) -> None:
    """The test figures of every task, and the macro ones."""
    for name, figures in evaluation["tasks"].items():
        for figure, interval in figures["model"].items():
            if interval["value"] is not None:
                client.log_metric(run_id, metric_name(f"test_{figure}_{name}"), interval["value"])
    for system, figure in evaluation["macro_pr_auc"].items():
        client.log_metric(run_id, f"test_macro_pr_auc_{system}", figure["value"])


def metric_name(name: str) -> str:
    """A name that MLflow takes for a metric: labels may be any text."""
    return re.sub(r"[^\w.\- ]", "_", name)


def version_of_bundle(config: RunConfig, client: Any, sha256: str) -> str | None:
    """The version that carries a bundle, if there is one. Where an answer that was lost, or another process,
    made more of them, it is the first that was ever promoted, else the first; those that neither an alias nor
    the promotion log names are taken away.
    """
    model = config.registry.model
    found = client.search_model_versions(f"name = '{model}' and tags.bundle_sha256 = '{sha256}'")
    promoted = {record["version"] for record in read_promotions(config)}
    versions = sorted(
        (str(one.version) for one in found), key=lambda version: (version not in promoted, int(version))
    )
    if len(versions) > 1:
        named = promoted | {str(version) for version in client.get_registered_model(model).aliases.values()}
        for other in versions[1:]:
            if other not in named:
                client.delete_model_version(model, other)
    return versions[0] if versions else None


def verdict_path(version: str, against: str) -> str:
    """Where the gate's verdict lies among a run's artifacts."""
    return f"gate/version-{version}-against-{against}.json"


def read_verdict(client: Any, record: Any) -> dict[str, Any] | None:
    """The gate's last verdict on a version, if it was judged. DamagedInputError: the file is not the one that
    was written.
    """
    import mlflow

    told = gate_tag(record.tags)
    if told is None:
        return None
    path = verdict_path(str(record.version), told["against"])
    verdict = json.loads(mlflow.artifacts.load_text(f"runs:/{record.run_id}/{path}"))
    if json_sha256(verdict) != told["sha256"]:
        raise DamagedInputError(
            f"{path} of MLflow run {record.run_id} is not what the gate wrote; judge version "
            f"{record.version} again"
        )
    return dict(verdict)


def write_verdict(config: RunConfig, version: str, verdict: dict[str, Any]) -> None:
    """Put the gate's verdict on a version: its outcome as a tag, which `promote` reads, and the whole as a
    file of its run.
    """
    client = mlflow_client(config)
    record = check_version(client, config.registry.model, version)
    text = canonical_json(verdict)
    client.log_text(record.run_id, text, verdict_path(version, verdict["against"]))
    told = {"against": verdict["against"], "passed": verdict["passed"], "sha256": json_sha256(verdict)}
    # one tag: half a verdict must not be read
    client.set_model_version_tag(config.registry.model, version, "gate", canonical_json(told))


def check_version(client: Any, model: str, version: str) -> Any:
    """MLflow's record of a version; ConfigError if it is not registered."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise ConfigError(
            f"version {version} of model {model} is not registered ({error.message}); `relevance "
            "register` makes one"
        ) from error


def check_registered(record: Any) -> None:
    """ConfigError: somebody made the version by other means, and it says nothing of itself."""
    if not {"bundle_sha256", "macro_pr_auc", "lexical_macro_pr_auc"} <= record.tags.keys():
        raise ConfigError(
            f"version {record.version} of model {record.name} was not made by `relevance register`; name "
            "one that was"
        )
