"""Import the synthetic ads marketplace."""

from typing import Literal

from pydantic import Field

from pipeline.config.extensions import IMPORTERS, ImportContext, Importer
from pipeline.config.sources import SourceBlock
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.synthetic.marketplace import build_marketplace, write_marketplace


class SampleSource(SourceBlock):
    """Synthetic ads marketplace."""

    kind: Literal["sample"]
    rows_per_task: int = Field(ge=1)  # rows with labels
    unlabelled_rows_per_task: int = Field(ge=0)  # rows to be scored

    @property
    def title(self) -> str:
        return "the synthetic ads marketplace"


def import_sample(source: SampleSource, context: ImportContext) -> ImportCounts:
    """Write labeled rows into `judged_dir`, and unlabelled/ and truth.parquet into the data folder."""
    marketplace = build_marketplace(source.rows_per_task, source.unlabelled_rows_per_task, context.seed)
    write_marketplace(marketplace, context.data_dir, context.judged_dir)
    return ImportCounts({name: table.num_rows for name, table in marketplace.rows.items()}, {})


IMPORTERS.register("sample", Importer(SampleSource, import_sample))
