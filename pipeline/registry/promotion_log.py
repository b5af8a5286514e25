"""Which version is champion: a log of promotions, each put in place only if nobody else's is there. MLflow's
aliases are a view of the log and are repaired from it, as they are last-writer-wins.

    <promotions>/<model>/000001.json   version, the champion it was to replace, who, when, why, the verdict
"""

import getpass
import json
import os
import time
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError, DamagedInputError, GateRefusedError, RetryableError
from pipeline.storage.filesystem import canonical_json, put_if_absent, read_json

Record = dict[str, Any]


def read_promotions(config: RunConfig) -> list[Record]:
    """All promotions and rollbacks, oldest first. The last is the champion. DamagedInputError: a record is
    damaged or gone.
    """
    found: list[Record] = []
    for path in sorted(
        path for path in config.promotions_dir.glob("*.json") if not path.name.startswith(".")
    ):
        try:
            found.append(read_json(path))
        except DamagedInputError as error:
            told = (
                f"{path}, a record of the promotion log, is damaged; restore it from a backup: the log "
                "says which version is champion"
            )
            raise DamagedInputError(told) from error
        if found[-1]["number"] != len(found):
            raise DamagedInputError(
                f"the promotion log in {path.parent} lacks record {len(found)}; restore it from a backup"
            )
    return found


def promote(
    config: RunConfig, client: Any, version: str, tags: dict[str, str], override: str | None = None
) -> Record:
    """Make a version champion if the gate let it pass against the champion of now, or, where there is none,
    if it beats the lexical floor.

    `tags` are the version's. With `override`, a reason, it is promoted whatever the gate says, and the reason
    is recorded. Returns the record; the champion's own if it is this version already; `aliases` in it says
    whether they follow. GateRefusedError: the gate does not let it pass. RetryableError: another promotion
    came in between.
    """
    log = read_promotions(config)
    if log and log[-1]["version"] == version:
        return {**log[-1], "aliases": follow(config, client)}
    champion = log[-1]["version"] if log else None
    gate = gate_tag(tags)
    if override is None:
        check_gate(config.registry.model, version, tags, gate, champion)
    return append(
        config,
        client,
        log,
        {"kind": "promotion", "version": version, "override": override, "gate": gate, **figures(tags)},
    )


def gate_tag(tags: dict[str, str]) -> Record | None:
    """What the gate last said of a version: against, passed, sha256 of the whole verdict. None: nothing
    yet.
    """
    return dict(json.loads(tags["gate"])) if "gate" in tags else None


def check_gate(
    model: str, version: str, tags: dict[str, str], gate: Record | None, champion: str | None
) -> None:
    """GateRefusedError unless the version may take the champion's place."""
    if champion is None:
        mine, floor = float(tags["macro_pr_auc"]), float(tags["lexical_macro_pr_auc"])
        if not mine > floor:
            raise GateRefusedError(
                f"version {version} of {model} has macro PR-AUC {mine:.4f}, the lexical floor "
                f"{floor:.4f}; it stays challenger."
                " Train longer, or on more rows, and register again"
            )
        return
    look = f"relevance evaluate --version {version} --against champion"
    if gate is None or gate["against"] != champion:
        against = "no version" if gate is None else f"version {gate['against']}"
        raise GateRefusedError(
            f"version {version} of {model} was compared with {against}, the champion is version "
            f"{champion}; run `{look}` first"
        )
    if gate["passed"] is not True:
        over = "--override with a --reason goes over it"
        raise GateRefusedError(
            f"version {version} of {model} did not pass the gate against version {champion}; `{look}` "
            f"says why, {over}"
        )


def roll_back(config: RunConfig, client: Any, reason: str) -> Record:
    """Make the champion before this one champion again; done twice it goes back two champions. ConfigError:
    there is none to go back to.
    """
    log = read_promotions(config)
    line = champions(log)
    if len(line) < 2:
        raise ConfigError(
            f"model {config.registry.model} has no earlier champion to go back to; `relevance history` "
            "lists what was promoted"
        )
    before = line[-2]
    kept = {key: before[key] for key in ("bundle_sha256", "macro_pr_auc", "lexical_macro_pr_auc")}
    return append(
        config, client, log, {"kind": "rollback", "version": before["version"], "override": reason, **kept}
    )


def champions(log: list[Record]) -> list[Record]:
    """The promotions whose versions stand behind each other, the champion last: a rollback takes away the one
    it went back from.
    """
    line: list[Record] = []
    for record in log:
        if record.get("kind") == "rollback":
            line.pop()
        else:
            line.append(record)
    return line


def append(config: RunConfig, client: Any, log: list[Record], facts: Record) -> Record:
    """Put the next record in place if nobody else has, then let the aliases follow."""
    expected = log[-1]["version"] if log else None
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"number": len(log) + 1, "expected_champion": expected, "by": user(), "at": at, **facts}
    if not put_if_absent(
        config.promotions_dir / f"{record['number']:06d}.json", canonical_json(record).encode()
    ):
        raise RetryableError(
            f"another promotion of {config.registry.model} came first: expected champion {expected}; "
            "look, then run again"
        )
    return {**record, "aliases": follow(config, client)}


def follow(config: RunConfig, client: Any) -> str:
    """Let the aliases follow the log; why they do not yet, where the store does not let them. What is in the
    log is done, so this is no failure: a rollback that was told to have failed would be typed again, and go
    back two champions.
    """
    try:
        repair_aliases(config, client)
    except (Exception, KeyboardInterrupt) as error:
        return f"behind the log until the next use ({type(error).__name__})"
    return "as the log says"


def rolled_back(log: list[Record], version: str) -> Record | None:
    """The rollback by which a version was left, if that was the last that was done with it."""
    about = [record for record in log if version in (record["version"], record["expected_champion"])]
    last = about[-1] if about else None
    return (
        last
        if last is not None and last["kind"] == "rollback" and last["expected_champion"] == version
        else None
    )


def user() -> str:
    """Who does this: the account's name, its number where a container knows no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def figures(tags: dict[str, str]) -> Record:
    """What the log keeps of a version."""
    return {
        "bundle_sha256": tags["bundle_sha256"],
        "macro_pr_auc": float(tags["macro_pr_auc"]),
        "lexical_macro_pr_auc": float(tags["lexical_macro_pr_auc"]),
    }


def repair_aliases(config: RunConfig, client: Any) -> None:
    """Make the aliases champion and previous_champion say what the log says. The log is read again
    afterwards: who was slower than another promotion may have set an alias back.
    """
    model, done = config.registry.model, -1
    while done != len(log := read_promotions(config)):
        done = len(log)
        aliases = {
            alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()
        }
        line = [record["version"] for record in champions(log)]
        wanted = dict(zip(("champion", "previous_champion"), reversed(line[-2:]), strict=False))
        for alias, version in wanted.items():
            if aliases.get(alias) != version:
                set_alias(client, model, alias, version)
        if "previous_champion" in aliases.keys() - wanted.keys():
            client.delete_registered_model_alias(model, "previous_champion")


def set_alias(client: Any, model: str, alias: str, version: str) -> None:
    """Point an alias at a version. An earlier champion that was deleted in MLflow has none: nothing hangs on
    it but a rollback.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(model, alias, version)
    except MlflowException as error:
        if alias == "champion" or error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
