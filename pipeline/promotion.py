"""Which version is champion: a log of promotions, each put in place only if nobody else's is there. MLflow's aliases are a view of the log and are
repaired from it, as they are last-writer-wins.

    <promotions>/<model>/000001.json   version, the champion it was to replace, who, when, why, what the gate said
"""

import getpass
import os
import time
from typing import Any

from pipeline.commit import put_if_absent
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, GateRefusedError, RetryableError
from pipeline.files import canonical_json, read_json

Record = dict[str, Any]


def read_promotions(config: RunConfig) -> list[Record]:
    """All promotions and rollbacks, oldest first. The last is the champion."""
    return [read_json(path) for path in sorted(config.promotions_dir.glob("*.json")) if not path.name.startswith(".")]


def promote(config: RunConfig, client: Any, version: str, tags: dict[str, str], override: str | None = None) -> Record:
    """Make a version champion if the gate let it pass against the champion of now, or, where there is none, if it beats the lexical floor.

    `tags` are the version's. With `override`, a reason, it is promoted whatever the gate says, and the reason is recorded. Returns the record;
    the champion's own if it is this version already. GateRefusedError: the gate does not let it pass. RetryableError: another promotion came
    in between.
    """
    log = read_promotions(config)
    if log and log[-1]["version"] == version:
        repair_aliases(config, client)
        return log[-1]
    champion = log[-1]["version"] if log else None
    if override is None:
        check_gate(config.registry.model, version, tags, champion)
    gate: Record = {key: tags[key] for key in ("gate_against", "gate_passed", "gate_sha256") if key in tags}
    return append(config, client, log, {"kind": "promotion", "version": version, "override": override, **gate, **figures(tags)})


def check_gate(model: str, version: str, tags: dict[str, str], champion: str | None) -> None:
    """GateRefusedError unless the version may take the champion's place."""
    if champion is None:
        mine, floor = float(tags["macro_pr_auc"]), float(tags["lexical_macro_pr_auc"])
        if not mine > floor:
            raise GateRefusedError(
                f"version {version} of {model} has macro PR-AUC {mine:.4f}, the lexical floor {floor:.4f}; it stays challenger."
                " Train longer, or on more rows, and register again"
            )
        return
    look = f"relevance evaluate --version {version} --against champion"
    if tags.get("gate_against") != champion:
        against = f"version {tags['gate_against']}" if "gate_against" in tags else "no version"
        raise GateRefusedError(f"version {version} of {model} was compared with {against}, the champion is version {champion}; run `{look}` first")
    if tags.get("gate_passed") != "true":
        over = "--override with a --reason goes over it"
        raise GateRefusedError(f"version {version} of {model} did not pass the gate against version {champion}; `{look}` says why, {over}")


def roll_back(config: RunConfig, client: Any, reason: str) -> Record:
    """Make the champion before this one champion again; done twice it goes back two champions. ConfigError: there is none to go back to."""
    log = read_promotions(config)
    line = champions(log)
    if len(line) < 2:
        raise ConfigError(f"model {config.registry.model} has no earlier champion to go back to; `relevance history` lists what was promoted")
    before = line[-2]
    kept = {key: before[key] for key in ("bundle_sha256", "macro_pr_auc", "lexical_macro_pr_auc")}
    return append(config, client, log, {"kind": "rollback", "version": before["version"], "override": reason, **kept})


def champions(log: list[Record]) -> list[Record]:
    """The promotions whose versions stand behind each other, the champion last: a rollback takes away the one it went back from."""
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
    if not put_if_absent(config.promotions_dir / f"{record['number']:06d}.json", canonical_json(record).encode()):
        raise RetryableError(f"another promotion of {config.registry.model} came first: expected champion {expected}; look, then run again")
    repair_aliases(config, client)
    return record


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
    """Make the aliases champion and previous_champion say what the log says. The log is read again afterwards: who was slower than another promotion
    may have set an alias back."""
    model, done = config.registry.model, -1
    while done != len(log := read_promotions(config)):
        done = len(log)
        aliases = {alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()}
        line = [record["version"] for record in champions(log)]
        wanted = dict(zip(("champion", "previous_champion"), reversed(line[-2:]), strict=False))
        for alias, version in wanted.items():
            if aliases.get(alias) != version:
                client.set_registered_model_alias(model, alias, version)
        if "previous_champion" in aliases.keys() - wanted.keys():
            client.delete_registered_model_alias(model, "previous_champion")
