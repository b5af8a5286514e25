"""What works on each architecture of transformers, as the table in models/README.md: tried on small models.

Run `python -m tests.support.architectures` to write the table.

Shape legend: B rows, S tokens, C labels.
"""

import logging
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.adapters.mtl_lora import MTLLoRAConfig
from models.backbone import Backbone, load_backbone
from models.config import BackboneConfig, ModelConfig
from models.folder_checks import BackboneUnavailableError
from models.inference.merging import merge_task
from models.inference.prefix_cache import encode_prefixes, forward_with_prefix
from models.inference.task_branching import all_task_logits
from models.packing import pack_rows
from models.padding import check_padding
from models.relevance import RelevanceModel, build_model
from models.serialization.bundle import read_bundle, write_bundle
from models.serialization.export import ExportFormat, ExportTask, export_merged, export_peft
from models.serialization.export_check import ExportRefusedError, check_export, sample_export
from models.shrinking import shrink_config
from models.trial import AdapterTrialError, try_adapters
from tests.support.architecture_settings import SETTINGS
from tests.support.places import ROOT
from tests.support.tiny_trunks import write_model

README = ROOT / "models" / "README.md"
START, END = "<!-- architectures -->", "<!-- end of architectures -->"
YES, NO = "yes", "no"
COLUMNS = (
    "rows alone",
    "training",
    "merged",
    "bundle",
    "PEFT",
    "transformers",
    "one pass",
    "packed",
    "prefix",
)
NUM_LABELS = (2, 3)
LENGTHS = (9, 5, 7, 6)
TASK_B = torch.tensor([0, 1, 1, 0])
PREFIX_LENGTH = 3
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Result:
    """One row of the table and its footnotes."""

    model_type: str
    adapted: str  # which linears are adapted
    cells: dict[str, str]
    notes: tuple[str, ...]


class Architecture:
    """A small random model of an architecture, tried feature by feature."""

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type, self.folder = model_type, folder
        self.notes: list[str] = []
        self.excluded: tuple[str, ...] = ()

    def try_all(self) -> Result:
        """Try every feature."""
        write_small_model(self.model_type, self.folder / "base")
        try:
            self._find_targets()
            _ = self.model
        except (BackboneUnavailableError, AdapterTrialError) as error:
            return Result(self.model_type, f"refused: {self._short(error)}", dict.fromkeys(COLUMNS, ""), ())
        tries: dict[str, Callable[[], bool]] = {
            "rows alone": self.rows_alone,
            "training": self.training,
            "merged": self.merged,
            "bundle": self.bundle,
            "PEFT": lambda: self.exported("peft"),
            "transformers": lambda: self.exported("merged"),
            "one pass": self.one_pass,
            "prefix": self.prefix,
            "packed": self.packed,  # last: it changes the model's attention
        }
        cells = {}
        for column, attempt in tries.items():
            try:
                cells[column] = YES if attempt() else NO
            except (BackboneUnavailableError, ExportRefusedError) as error:
                cells[column] = NO
                self.notes.append(f"{column}: {self._short(error)}")
            except Exception:  # callers measure these features and go without
                if column not in ("one pass", "packed", "prefix"):
                    raise
                cells[column] = NO
        adapted = f"all but {', '.join(f'`{name}`' for name in self.excluded)}" if self.excluded else "all"
        return Result(self.model_type, adapted, cells, tuple(self.notes))

    def _find_targets(self) -> None:
        """Leave out the linears that the trial names."""
        try:
            try_adapters(self.folder / "base", self.config)
        except AdapterTrialError as error:
            excluded = re.search(r"exclude_modules: \[(.*?)\]", str(error))
            if excluded is None:
                raise
            self.excluded = tuple(excluded[1].split(", "))
            try_adapters(self.folder / "base", self.config)

    def _short(self, error: Exception) -> str:
        """Return the first clause of an error without this machine's paths and measurements."""
        text = str(error).replace(str(self.folder / "base"), "it").replace(str(self.folder), "")
        return re.split(";|: padding changes", text.splitlines()[0])[0]

    @property
    def config(self) -> MTLLoRAConfig:
        return MTLLoRAConfig(rank=2, target_modules="all-linear", exclude_modules=self.excluded)

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self._backbone_config)

    @property
    def _backbone_config(self) -> BackboneConfig:
        return BackboneConfig(source=str(self.folder / "base"), dtype="float32")

    @cached_property
    def model(self) -> RelevanceModel:
        """The model with adapters that are all other than zero."""
        return self._new_model(self.backbone, stir=True)

    def _new_model(self, backbone: Backbone, stir: bool) -> RelevanceModel:
        config = ModelConfig(self._backbone_config, self.config, NUM_LABELS)
        model = build_model(config, backbone, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.trainable_state().values() if stir else ():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    @cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, S) and their mask, of rows that begin alike."""
        mask_BS = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
        ids_BS = torch.randint(5, 100, mask_BS.shape, generator=torch.Generator().manual_seed(0))
        ids_BS[:, :PREFIX_LENGTH] = ids_BS[0, :PREFIX_LENGTH]
        return ids_BS * mask_BS, mask_BS

    @cached_property
    def logits_BC(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(*self.rows, TASK_B)  # type: ignore[no-any-return]

    def rows_alone(self) -> bool:
        """Check that a row alone has the logits of a padded one."""
        check_padding(self.model, (7, 8, 9), range(10, 40), pad_id=0)
        ids_BS, _ = self.rows
        with torch.no_grad():
            alone = [
                self.model(
                    ids_BS[row : row + 1, :length], torch.ones(1, length).long(), TASK_B[row : row + 1]
                )
                for row, length in enumerate(LENGTHS)
            ]
        return close(torch.cat(alone), self.logits_BC)

    def training(self) -> bool:
        """Check that a pass in training mode gives every adapter a gradient."""
        self.model.train()
        logits_BC = self.model(*self.rows, TASK_B)
        logits_BC[:, : min(NUM_LABELS)].square().sum().backward()
        self.model.eval()
        with torch.no_grad():
            self.model(*self.rows, TASK_B)  # recurrent layers keep their last states
        gradients = [parameter.grad for parameter in self.model.trainable_state().values()]
        self.model.zero_grad(set_to_none=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def merged(self) -> bool:
        """Check that merged weights have a task's logits."""
        with torch.no_grad():
            return all(
                close(merge_task(self.model, task)(*self.rows)[task == TASK_B], self._own(task))
                for task in range(len(NUM_LABELS))
            )

    def _own(self, task: int) -> torch.Tensor:
        return self.logits_BC[task == TASK_B][:, : NUM_LABELS[task]]

    def bundle(self) -> bool:
        """Check that a bundle gives a new model the same logits."""
        folder = self.folder / "bundle"
        write_bundle(folder, {}, self.model.trainable_state(), self.folder / "base")
        model = self._new_model(load_backbone(self._backbone_config), stir=False)
        model.load_trainable_state(read_bundle(folder).tensors)
        with torch.no_grad():
            return close(model(*self.rows, TASK_B), self.logits_BC)

    def exported(self, export_format: ExportFormat) -> bool:
        """Check that an export, loaded by its README's code, has the logits of its task."""
        folder = self.folder / export_format
        folder.mkdir()
        names = [f"level {label}" for label in range(NUM_LABELS[1])]
        task = ExportTask(self.model, 1, names, str(self.folder / "base"), None, pad_id=0)
        (export_peft if export_format == "peft" else export_merged)(task, folder)
        check_export(folder, export_format, sample_export(task, export_format, *self.rows))
        return True

    def one_pass(self) -> bool:
        """Check that one pass for all tasks has each task's logits."""
        with torch.no_grad():
            by_task = all_task_logits(self.model, *self.rows)
        return all(
            close(by_task[task][task == TASK_B][:, : NUM_LABELS[task]], self._own(task)) for task in by_task
        )

    def prefix(self) -> bool:
        """Check that rows behind a shared prefix have the logits of whole rows."""
        ids_BS, mask_BS = self.rows
        merged = merge_task(self.model, 0)
        head, tail = (slice(None, PREFIX_LENGTH), slice(PREFIX_LENGTH, None))
        prefixes = encode_prefixes(merged, ids_BS[:1, head], mask_BS[:1, head], is_padded=False)
        index_B = torch.zeros(len(LENGTHS), dtype=torch.long)
        logits_BC = forward_with_prefix(merged, ids_BS[:, tail], mask_BS[:, tail], prefixes, index_B)
        return self.model.pooling == "last" and close(logits_BC[TASK_B == 0], self._own(0))

    def packed(self) -> bool:
        """Check that rows end to end have the logits of padded ones."""
        ids_BS, _ = self.rows
        id_lists = [
            ids[:length].numpy().astype(np.int32) for ids, length in zip(ids_BS, LENGTHS, strict=True)
        ]
        ids_1N, packed = pack_rows(id_lists, TASK_B.numpy(), np.array([PREFIX_LENGTH] * len(NUM_LABELS)))
        self.model.enable_packing()
        with torch.no_grad():
            logits_BC = self.model(ids_1N, torch.ones(len(LENGTHS), 1).long(), TASK_B, packed)
        return self.model.pooling == "last" and close(logits_BC, self.logits_BC)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether logits are equal up to rounding."""
    is_label = torch.isfinite(expected)
    largest = float(expected[is_label].abs().max())
    return bool((actual - expected)[is_label].abs().max() <= TOLERANCE * max(1.0, largest))


def write_small_model(model_type: str, folder: Path) -> None:
    """Write a small random model of an architecture, with few layers."""
    from transformers import CONFIG_MAPPING

    config_class: Any = CONFIG_MAPPING[model_type]
    config = config_class(**{"num_hidden_layers": 2, "pad_token_id": 0, **SETTINGS.get(model_type, {})})
    small = shrink_config(config)
    torch.manual_seed(0)
    model = model_class(small)(small)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than new weights, so that every layer matters
            parameter.add_(0.05 * torch.randn(parameter.shape))
    write_model(folder, model)


def model_class(config: Any) -> Any:
    """Return the class whose checkpoints a user would bring."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_MAPPING,
    )

    for mapping in (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_MAPPING,
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"transformers has no model of {config.model_type}")


def try_architecture(model_type: str) -> Result:
    """Try every feature on an architecture."""
    with tempfile.TemporaryDirectory() as folder:
        return Architecture(model_type, Path(folder)).try_all()


def render_table(results: list[Result]) -> str:
    """Return the table of the README with its footnotes."""
    lines = [
        f"| architecture | adapted linears | {' | '.join(COLUMNS)} |",
        f"|{'---|' * (len(COLUMNS) + 2)}",
        *map(render_row, results),
    ]
    notes = [f"- `{result.model_type}`, {note}." for result in results for note in result.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def render_row(result: Result) -> str:
    """Return an architecture's line of the table."""
    cells = " | ".join(result.cells[column] for column in COLUMNS)
    return f"| `{result.model_type}` | {result.adapted} | {cells} |"


def main() -> None:
    """Write the table, or print the rows of the architectures that are named."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.disable()
    torch.set_num_threads(1)
    named = sys.argv[1:]
    results = [try_architecture(model_type) for model_type in named or SETTINGS]
    if named:
        print(render_table(results))
        return
    before, _, rest = README.read_text().partition(START)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{START}\n{render_table(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
