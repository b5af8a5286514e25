"""The cache key changes exactly with everything that determines the encoded rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.backbone import load_backbone
from models.config import BackboneConfig
from models.serialization.bundle import write_bundle
from pipeline.config.encoding import EncodeConfig
from pipeline.config.splits import SplitConfig
from pipeline.data.reader import find_partitions
from pipeline.encoding import encoded_cache
from pipeline.encoding.encoded_cache import EncodingPlan, encoding_key, tokenizer_sha256
from tests.support.encoding_plans import TASKS, altered_row, changed_task, other_tokenizer, write_judged


def exchanged_files(plan: EncodingPlan, tmp_path: Path) -> EncodingPlan:
    first, second = plan.partitions["three"][0], plan.partitions["three"][2]
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    return plan


CHANGING: dict[str, Callable[[EncodingPlan, Path], EncodingPlan]] = {
    "template": lambda plan, _: changed_task(plan, template="{query} {ad_title}!"),
    "limits": lambda plan, _: replace(plan, encode=EncodeConfig(max_tokens=63)),
    "split": lambda plan, _: replace(plan, split=SplitConfig(valid_share=0.2, test_share=0.31)),
    "tokenizer": lambda plan, tmp_path: other_tokenizer(plan, tmp_path, "tokenizer.json", "{}"),
    "tokenizer's settings": lambda plan, tmp_path: other_tokenizer(
        plan, tmp_path, "special_tokens_map.json", "{}"
    ),
    "data": altered_row,
    "order of the data": exchanged_files,
    "tasks": lambda plan, _: replace(plan, tasks=TASKS[:1]),
}
IRRELEVANT: dict[str, Callable[[EncodingPlan, Path], EncodingPlan]] = {
    "nothing": lambda plan, _: plan,
    "labels": lambda plan, _: changed_task(
        plan, labels=("a", "b", "c"), relevant_from=2, sampling_weight=3.0, target_precision=0.5
    ),
    "a task without rows": lambda plan, _: replace(plan, tasks=(TASKS[0], TASKS[2])),
    "order of the tasks": lambda plan, _: replace(plan, tasks=TASKS[::-1]),
    "weights beside the tokenizer": lambda plan, tmp_path: other_tokenizer(
        plan, tmp_path, "config.json", "{}"
    ),
    "place of the data": lambda plan, tmp_path: replace(
        plan, partitions=find_partitions(write_judged(tmp_path / "elsewhere"), TASKS)
    ),
}


@pytest.mark.parametrize("change", CHANGING)
def test_relevant_change_moves_the_key(plan: EncodingPlan, tmp_path: Path, change: str) -> None:
    before = encoding_key(plan)
    assert encoding_key(CHANGING[change](plan, tmp_path)) != before


@pytest.mark.parametrize("change", IRRELEVANT)
def test_irrelevant_change_keeps_the_key(plan: EncodingPlan, tmp_path: Path, change: str) -> None:
    before = encoding_key(plan)
    assert encoding_key(IRRELEVANT[change](plan, tmp_path)) == before


def test_encoder_version_moves_the_key(plan: EncodingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoding_key(plan)
    monkeypatch.setattr(encoded_cache, "ENCODER_VERSION", "next")
    assert encoding_key(plan) != before


def test_tokenizer_in_the_bundle_gives_the_same_key(plan: EncodingPlan, tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(source=str(plan.tokenizer_dir), dtype="float32"))
    write_bundle(tmp_path / "bundle", {}, {}, backbone.folder)
    assert tokenizer_sha256(tmp_path / "bundle" / "tokenizer") == tokenizer_sha256(backbone.folder)
    assert encoding_key(replace(plan, tokenizer_dir=tmp_path / "bundle" / "tokenizer")) == encoding_key(plan)
