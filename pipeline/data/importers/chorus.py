"""The Chorus electronics ratings (query_product_ratings.tsv) as task electronics."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.data.importers.importer import ImportCounts, Row, Source, import_lines, label_index, required
from pipeline.data.importers.records import Line, check_file
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.importers.text_files import read_separated
from pipeline.data.writer import OnRows, StagedRows
from pipeline.errors import DamagedInputError


class ChorusSource(PathSource):
    """The ratings file of the Chorus electronics shop."""

    kind: Literal["chorus"]


CHORUS_TASK = "electronics"

CHORUS_LABELS = ("0", "1", "2", "3")

CHORUS_MARKET = "en"  # the source names no country; queries and products are English

_COLUMNS = ("query", "docid", "final_rating", "title", "short_description", "supplier")


def import_chorus(file: Path, out_dir: Path, on_rows: OnRows | None = None) -> ImportCounts:
    """The ratings as rows; final_rating 0 to 3 is the label, the number of a (query, docid) judged again ends
    its row_id.

    ConfigError: file absent. DamagedInputError: empty, cut off, or its header is no text. DataRefusedError: a
    column is missing, or as `import_lines`. Memory holds an id for each of the 3,188 pairs.
    """
    check_whole(check_file(file))
    with StagedRows(out_dir, on_rows=on_rows) as staged:
        return import_lines(Source("chorus", file, lambda: _numbered(file), _build_row), staged)


def check_whole(path: Path) -> None:
    """DamagedInputError if a file of text ends in the middle of a line: where the last column is long and
    unused, only this tells a cut in it.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size_bytes - 1))
        if size_bytes and file.read() != b"\n":
            raise DamagedInputError(
                f"{path} ends in the middle of a line; download it again, or end its last line if it is whole"
            )


def _numbered(file: Path) -> Iterator[Line]:
    """The lines with their row_id as a field."""
    num_seen: Counter[str] = Counter()
    for line in read_separated(file, _COLUMNS, "\t"):
        if not line.defect:
            query_hash = hashlib.blake2b((line.fields["query"] or "").encode(), digest_size=6).hexdigest()
            row_id = f"{CHORUS_TASK}-{clean_line(line.fields['docid'])}-{query_hash}"
            num_seen[row_id] += 1
            row_id = row_id if num_seen[row_id] == 1 else f"{row_id}-{num_seen[row_id]}"
            line = line._replace(fields={**line.fields, "row_id": row_id})
        yield line


def _build_row(line: Line) -> tuple[str, Row]:
    fields = line.fields
    required(clean_line(fields["docid"]), "empty_id")
    return CHORUS_TASK, {
        "row_id": fields["row_id"],
        "query": required(clean_line(fields["query"]), "empty_query"),
        "market": CHORUS_MARKET,
        "label": label_index(fields["final_rating"], CHORUS_LABELS),
        "ad_title": required(build_title(fields["title"]), "empty_title"),
        "ad_description": build_description((fields["supplier"],), (fields["short_description"],)),
    }


IMPORTERS.register(
    "chorus",
    Importer(
        ChorusSource, lambda source, target: import_chorus(source.path, target.judged_dir, target.on_rows)
    ),
)
