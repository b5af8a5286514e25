"""The synthetic ads marketplace as a source."""

from typing import Literal

from pydantic import Field

from pipeline.config.registry import IMPORTERS, Importer, ImportTarget
from pipeline.config.sources import SourceBlock
from pipeline.data.importers.importer import ImportCounts
from pipeline.data.synthetic.marketplace import build_marketplace, write_marketplace


class SampleSource(SourceBlock):
    """The synthetic ads marketplace."""

    kind: Literal["sample"]
    rows_per_task: int = Field(ge=1)  # judged rows
    unlabelled_rows_per_task: int = Field(ge=0)  # rows to be scored

    @property
    def title(self) -> str:
        return "the synthetic ads marketplace"


def import_sample(source: SampleSource, target: ImportTarget) -> ImportCounts:
    """Write judged/, unlabelled/ and truth.parquet into the run's data folder."""
    marketplace = build_marketplace(source.rows_per_task, source.unlabelled_rows_per_task, target.seed)
    write_marketplace(marketplace, target.data_dir)
    return ImportCounts({name: table.num_rows for name, table in marketplace.rows.items()}, {})


IMPORTERS.register("sample", Importer(SampleSource, import_sample))
