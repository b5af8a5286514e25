"""Example extension of each kind, as another distribution would provide it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.adapters import register_method
from models.adapters.adapted_linear import NotMergeableError
from models.adapters.lora import LoRAConfig, LoRALinear
from pipeline.config.extensions import IMPORTERS, ImportContext, Importer
from pipeline.config.gates import PromotionConfig
from pipeline.config.sources import SourceBlock
from pipeline.config.tasks import Task
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.writer import StagedRows
from pipeline.evaluation.behavioral_tests import Case, mean_move, register_case, with_texts
from pipeline.registry.promotion_gate import Evidence, RuleVerdict, promotion_rule
from validation.gate.expectations import Check, data_check

# an adapter method


@dataclass(frozen=True, kw_only=True)
class GatedLoRAConfig(LoRAConfig):
    """LoRA whose low-rank space goes through a sigmoid gate."""

    method: Literal["gated_lora"] = "gated_lora"  # type: ignore[assignment]
    steepness: float = 1.0


class GatedLoRALinear(LoRALinear):
    """LoRA layer with a gate between its two projections."""

    def low_rank(self, u: torch.Tensor) -> torch.Tensor:
        config = self.config
        assert isinstance(config, GatedLoRAConfig)
        return u * torch.sigmoid(config.steepness * u)

    def fold(self, task_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotMergeableError("gated_lora cannot be merged: its gate depends on the row")


register_method(GatedLoRAConfig, GatedLoRALinear)


# an importer


class ShopSource(SourceBlock):
    """Source of generated pairs for task "two"."""

    kind: Literal["shop"]
    rows: int = 3


def import_shop(source: ShopSource, target: ImportContext) -> ImportCounts:
    """Write the number of rows that the block asks for."""
    columns = {
        "row_id": [f"shop-{number}" for number in range(source.rows)],
        "query": [f"shoe {number}" for number in range(source.rows)],
        "ad_title": ["A shoe"] * source.rows,
        "market": ["us"] * source.rows,
        "label": [1] * source.rows,
    }
    with StagedRows(target.judged_dir, "shop", target.bar) as staged:
        staged.write("two", pa.table(columns))
        return ImportCounts(staged.publish(), {})


IMPORTERS.register("shop", Importer(ShopSource, import_shop))


# a promotion rule, a behavioural test, a data check


@promotion_rule
def refuse_everything(evidence: Evidence, config: PromotionConfig) -> RuleVerdict:
    """Refuse every version, as an example."""
    return RuleVerdict("nothing passes", False, "an example of a rule")


register_case(
    Case(
        "lower case",
        with_texts("query", lambda text, _: text.lower()),
        "the query in small letters moves the probability little",
        mean_move,
        tolerance=0.3,
    )
)


@data_check
def no_phone_numbers(task: Task, labels_required: bool) -> Iterable[Check]:
    """Refuse queries with a phone number."""
    pattern = r"\d{3}-\d{4}"
    yield Check(
        "query_no_phone",
        "query",
        "hold no phone number",
        "ExpectColumnValuesToNotMatchRegex",
        {"regex": pattern},
        lambda values: pc.match_substring_regex(values, pattern),
    )
