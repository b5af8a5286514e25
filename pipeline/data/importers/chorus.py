"""Import the Chorus electronics ratings (query_product_ratings.tsv) as task electronics."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.data.importers.gzip_text import is_gzip
from pipeline.data.importers.importer import (
    ImportCounts,
    RecordSource,
    Row,
    import_records,
    label_index,
    require_text,
)
from pipeline.data.importers.records import SourceRecord, check_file
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.importers.text_files import TSV, read_delimited
from pipeline.data.writer import StagedRows
from pipeline.errors import DamagedInputError
from pipeline.runtime.progress import ProgressBar


class ChorusSource(PathSource):
    """Ratings file of the Chorus electronics shop."""

    kind: Literal["chorus"]


CHORUS_TASK = "electronics"

CHORUS_LABELS = ("0", "1", "2", "3")

CHORUS_MARKET = "en"  # the source has no country; its texts are English

_COLUMNS = ("query", "docid", "final_rating", "title", "short_description", "supplier")


def import_chorus(file: Path, out_dir: Path | str, bar: ProgressBar | None = None) -> ImportCounts:
    """Publish the ratings as rows; final_rating 0 to 3 is the label.

    A row_id is made of docid and a hash of the query; the second rating of a pair has the suffix -2, and so
    on. Memory holds an id for each of the 3,188 pairs.

    Raises:
        ConfigError: The file does not exist.
        DamagedInputError: The file is empty or cut off, or its header is not text.
        DataRefusedError: A column is missing, or see `import_records`.
    """
    _check_complete(check_file(file))
    with StagedRows(out_dir, bar=bar) as staged:
        return import_records(RecordSource("chorus", file, lambda: _read_with_ids(file), _build_row), staged)


def _check_complete(path: Path) -> None:
    """Raise DamagedInputError if a text file ends in the middle of a line.

    The last column is long and unused, so nothing else would show a cut in it. Gzip has a checksum instead.
    """
    if is_gzip(path):
        return
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size_bytes - 1))
        if size_bytes and file.read() != b"\n":
            raise DamagedInputError(
                f"{path} ends in the middle of a line; download it again, or end its last line if it is whole"
            )


def _read_with_ids(file: Path) -> Iterator[SourceRecord]:
    """Yield the records with their row_id as a field."""
    num_seen: Counter[str] = Counter()
    for record in read_delimited(file, _COLUMNS, TSV):
        if record.defect:
            yield record
            continue
        query_hash = hashlib.blake2b((record.fields["query"] or "").encode(), digest_size=6).hexdigest()
        pair_id = f"{CHORUS_TASK}-{clean_line(record.fields['docid'])}-{query_hash}"
        num_seen[pair_id] += 1
        row_id = pair_id if num_seen[pair_id] == 1 else f"{pair_id}-{num_seen[pair_id]}"
        yield record._replace(fields={**record.fields, "row_id": row_id})


def _build_row(record: SourceRecord) -> tuple[str, Row]:
    fields = record.fields
    require_text(clean_line(fields["docid"]), "empty_id")
    return CHORUS_TASK, {
        "row_id": fields["row_id"],
        "query": require_text(clean_line(fields["query"]), "empty_query"),
        "market": CHORUS_MARKET,
        "label": label_index(fields["final_rating"], CHORUS_LABELS),
        "ad_title": require_text(build_title(fields["title"]), "empty_title"),
        "ad_description": build_description((fields["supplier"],), (fields["short_description"],)),
    }


IMPORTERS.register(
    "chorus",
    Importer(
        ChorusSource, lambda source, context: import_chorus(source.path, context.judged_dir, context.bar)
    ),
)
