"""Mixes of tasks on which bench_methods.py compares adapter methods, as folders of encoded rows.

A folder can be copied to another machine and trained on there.

- agreeing: the four tasks of jobs/configs/esci.yaml
- conflicting: pairs of one of its markets in three tasks with the same text: is the product an exact match, a
  substitute, a complement?
- commonsense: four question sets of MTL-LoRA's paper, each with its closed set of answers
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.bench.support.train_sides import validate_and_encode
from tests.support.places import ROOT, SHARED_DATA

ESCI_CONFIG = ROOT / "jobs" / "configs" / "esci.yaml"
QUESTIONS = {"exact": 3, "substitute": 2, "complement": 1}  # label of the source that counts as yes, by task
ANSWERS = {
    "boolq": ["false", "true"],
    "arc_easy": [f"answer{n}" for n in range(1, 6)],
    "arc_challenge": [f"answer{n}" for n in range(1, 6)],
    "openbookqa": [f"answer{n}" for n in range(1, 5)],
}
MIXES = ("agreeing", "conflicting", "commonsense")


def conflicting_settings(judged: Path) -> dict[str, Any]:
    """Return the settings of the conflicting mix, with rows in `judged`."""
    settings = yaml.safe_load(ESCI_CONFIG.read_text())
    template = "Does the product match the query?\nProduct: {ad_title}\nQuery: {query}\nAnswer:"
    tasks = [
        {"name": task, "labels": ["no", "yes"], "relevant_from": 1, "template": template}
        for task in QUESTIONS
    ]
    del settings["sources"], settings["gate"]
    return {**settings, "name": "conflicting", "data": {"judged": str(judged)}, "tasks": tasks}


def write_conflicting(esci_us: Path, judged: Path) -> None:
    """Write the contract rows of the conflicting mix, from those of the task esci_us."""
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(esci_us.glob("*.parquet"))])
    for task, label in QUESTIONS.items():
        is_asked = [int(source_label == label) for source_label in rows.column("label").to_pylist()]
        labels = pa.array(is_asked, rows.schema.field("label").type)
        ids = pa.array([f"{task}-{row_id}" for row_id in rows.column("row_id").to_pylist()])
        table = rows.set_column(rows.schema.get_field_index("label"), rows.schema.field("label"), labels)
        table = table.set_column(rows.schema.get_field_index("row_id"), rows.schema.field("row_id"), ids)
        (judged / f"task={task}").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, judged / f"task={task}" / "part-0.parquet")


def encode_relevance(mix: str, folder: Path) -> None:
    """Import, validate and encode a mix of relevance tasks into `folder`."""
    from jobs.command_run import CommandRun
    from jobs.commands.data import import_sources
    from jobs.console import Console
    from pipeline.config.loading import build_config

    work_dir = folder / "work"
    settings = {
        **yaml.safe_load(ESCI_CONFIG.read_text()),
        "name": "agreeing",
        "data": {},
        "work_dir": str(work_dir),
    }
    import_sources(build_config(settings, mix), CommandRun(Console(out=sys.stderr)))
    if mix == "conflicting":
        write_conflicting(work_dir / "agreeing" / "data" / "judged" / "task=esci_us", work_dir / "judged")
        settings = {**conflicting_settings(work_dir / "judged"), "work_dir": str(work_dir)}
    validate_and_encode(build_config(settings, mix)).rename(folder / "encoded")
    shutil.rmtree(work_dir)
    portable = {key: value for key, value in settings.items() if key not in ("sources", "data", "work_dir")}
    (folder / "settings.json").write_text(json.dumps(portable))


def encode_commonsense(folder: Path) -> None:
    """Encode the question sets; a tenth of the published training rows becomes the valid split."""
    from models.backbone import load_tokenizer, resolve_folder
    from models.config import BackboneConfig
    from pipeline.encoding.batches import ENCODED_SCHEMA
    from pipeline.encoding.encoded_dataset import EncodedWriter, encoded_file_name, write_manifest

    encoded = folder / "encoded"
    encoded.mkdir()
    tokenizer = load_tokenizer(resolve_folder(BackboneConfig()))
    for task, answers in ANSWERS.items():
        for source in ("train", "test"):
            table = pq.read_table(SHARED_DATA / "commonsense" / f"{task}_{source}.parquet")
            texts = [f"{text}\nAnswer:" for text in table.column("instruction").to_pylist()]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            labels = [answers.index(answer) for answer in table.column("answer").to_pylist()]
            names = [f"{task}-{source}-{row}" for row in range(len(ids))]
            columns = [names, texts, ids, labels, [1.0] * len(ids)]
            whole = pa.table(
                [pa.array(values, field.type) for values, field in zip(columns, ENCODED_SCHEMA, strict=True)],
                ENCODED_SCHEMA,
            )
            valid_N = np.arange(len(ids)) % 10 == 0 if source == "train" else np.zeros(len(ids), bool)
            for side, chosen_N in (("valid", valid_N), (source, ~valid_N)):
                if chosen_N.any():
                    with EncodedWriter(encoded / encoded_file_name(task, side)) as writer:  # type: ignore[arg-type]
                        writer.write(whole.filter(pa.array(chosen_N)))
    write_manifest(encoded)
    tasks = [
        {"name": task, "labels": answers, "relevant_from": 1, "template": "{query}{ad_title}\nAnswer:"}
        for task, answers in ANSWERS.items()
    ]
    (folder / "settings.json").write_text(
        json.dumps({"name": "commonsense", "tasks": tasks, "registry": {"model": "commonsense"}})
    )
