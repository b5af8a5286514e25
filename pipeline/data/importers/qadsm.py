"""QADSM of XGLUE, query-ad matching in English, German and French, as task qadsm; one file a language and
split, tab-separated.
"""

import re
from pathlib import Path
from typing import Literal

from pipeline.config.extensions import IMPORTERS, Importer
from pipeline.config.sources import PathSource
from pipeline.data.importers.importer import ImportCounts, Row, Source, import_lines, label_index, required
from pipeline.data.importers.records import Line, check_file
from pipeline.data.importers.text_cleaning import build_description, build_title, clean_line
from pipeline.data.importers.text_files import read_fields
from pipeline.data.writer import OnRows, StagedRows
from pipeline.errors import ConfigError


class QadsmSource(PathSource):
    """One file of XGLUE's QADSM."""

    kind: Literal["qadsm"]
    language: str | None = None  # two letters; default: from a name such as xglue.qadsm.en.train


QADSM_TASK = "qadsm"

QADSM_LABELS = ("Bad", "Good")  # from worst to best; some copies write 0 and 1

_COLUMNS = ("query", "ad_title", "ad_description", "label")

_FILE_NAME = re.compile(r"qadsm\.(?P<language>[a-z]{2})\.(?P<split>train|dev|test)\b", re.IGNORECASE)

_LANGUAGE = re.compile(r"[a-z]{2}")


def import_qadsm(
    file: Path, out_dir: Path, language: str | None = None, on_rows: OnRows | None = None
) -> ImportCounts:
    """The lines as rows; Bad and Good are 0 and 1, the language is the market.

    Language and official split stand in the published file's name, such as xglue.qadsm.en.train; `language`
    overrules it. Files of several languages and splits lie side by side in the data folder. ConfigError: file
    absent, or its language unknown. DamagedInputError: empty. DataRefusedError: as `import_lines`.
    """
    named = _FILE_NAME.search(check_file(file).name)
    language = language or (named["language"].lower() if named else None)
    if language is None or not _LANGUAGE.fullmatch(language):
        said = (
            f"language {language!r} is not two letters"
            if language
            else f"the name of {file} does not say its language"
        )
        raise ConfigError(
            f"{said}; name it, such as --language en, or call the file as published, such as "
            "xglue.qadsm.en.train"
        )
    split = named["split"].lower() if named else None
    name = "-".join(filter(None, ("qadsm", language, split)))

    def build_row(line: Line) -> tuple[str, Row]:
        return QADSM_TASK, _build_row(line, name) | {"market": language, "official_split": split}

    with StagedRows(out_dir, name, on_rows) as staged:
        return import_lines(Source(name, file, lambda: read_fields(file, _COLUMNS), build_row), staged)


def _build_row(line: Line, name: str) -> Row:
    query, title, description, label = (line.fields[column] for column in _COLUMNS)
    return {
        "row_id": f"{name}-{line.number}",
        "query": required(clean_line(query), "empty_query"),
        "ad_title": required(build_title(title), "empty_title"),
        "ad_description": build_description((), (description,)),
        "label": label_index(label, ("0", "1") if label and label.strip() in ("0", "1") else QADSM_LABELS),
    }


IMPORTERS.register(
    "qadsm",
    Importer(
        QadsmSource,
        lambda source, target: import_qadsm(source.path, target.judged_dir, source.language, target.on_rows),
    ),
)
