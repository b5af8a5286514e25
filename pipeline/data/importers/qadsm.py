"""Import QADSM of XGLUE, query-ad matching in English, German and French, as task qadsm.

Each language and split has its own tab-separated file.
"""

import re
from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
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
from pipeline.data.importers.text_files import read_headerless_tsv
from pipeline.data.writer import StagedRows
from pipeline.errors import ConfigError
from pipeline.runtime.progress import ProgressBar


class QadsmSource(PathSource):
    """One file of QADSM."""

    kind: Literal["qadsm"]
    language: str | None = None  # two letters; default: from the file name, as in xglue.qadsm.en.train

    @property
    def output_name(self) -> str:
        return _output_name(*_language_and_split(self.path, self.language))


QADSM_TASK = "qadsm"

QADSM_LABELS = ("Bad", "Good")  # worst first; some copies have 0 and 1

_COLUMNS = ("query", "ad_title", "ad_description", "label")

_FILE_NAME = re.compile(r"qadsm\.(?P<language>[a-z]{2})\.(?P<split>train|dev|test)\b", re.IGNORECASE)

_LANGUAGE = re.compile(r"[a-z]{2}")


def import_qadsm(
    file: Path, out_dir: Path | str, language: str | None = None, bar: ProgressBar | None = None
) -> ImportCounts:
    """Publish the lines as rows; Bad and Good are 0 and 1, the language is the market.

    Files of several languages and splits can share a data folder.

    Args:
        language: Two letters; default: from the file name, which also gives the official split.

    Raises:
        ConfigError: The file does not exist, or its language is unknown.
        DamagedInputError: The file is empty.
        DataRefusedError: See `import_records`.
    """
    language, split = _language_and_split(check_file(file), language)
    if not language or not _LANGUAGE.fullmatch(language):
        problem = f"language {language!r} is not two letters" if language else f"{file} names no language"
        raise ConfigError(
            f"{problem}; add --language en, for example, or name the file as published: xglue.qadsm.en.train"
        )
    name = _output_name(language, split)

    def build_row(record: SourceRecord) -> tuple[str, Row]:
        return QADSM_TASK, _build_row(record, name) | {"market": language, "official_split": split}

    with StagedRows(out_dir, name, bar) as staged:
        return import_records(
            RecordSource(name, file, lambda: read_headerless_tsv(file, _COLUMNS), build_row), staged
        )


def _language_and_split(file: Path, language: str | None) -> tuple[str | None, str | None]:
    """Return the language, and the official split by the name of the file; None if unknown."""
    parts = _FILE_NAME.search(file.name)
    language = language or (parts["language"] if parts else None)
    return language.lower() if language else None, parts["split"].lower() if parts else None


def _output_name(language: str | None, split: str | None) -> str:
    return "-".join(filter(None, (QADSM_TASK, language, split)))


def _build_row(record: SourceRecord, name: str) -> Row:
    query, title, description, label = (record.fields[column] for column in _COLUMNS)
    is_number = (label or "").strip() in ("0", "1")
    return {
        "row_id": f"{name}-{record.number}",
        "query": require_text(clean_line(query), "empty_query"),
        "ad_title": require_text(build_title(title), "empty_title"),
        "ad_description": build_description((), (description,)),
        "label": label_index(label, ("0", "1") if is_number else QADSM_LABELS),
    }


IMPORTERS.register(
    "qadsm",
    Importer(
        QadsmSource,
        lambda source, context: import_qadsm(source.path, context.judged_dir, source.language, context.bar),
    ),
)
