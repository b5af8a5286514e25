"""Reader of json lines and json arrays; memory is bounded for any size of a file and of its items."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.data.importers.gzip_text import translate_text_errors
from pipeline.data.importers.records import SourceRecord, format_value
from pipeline.data.importers.rejects import BadRecordError
from pipeline.data.importers.text_cleaning import pair_surrogates
from pipeline.data.importers.text_files import (
    MAX_RECORD_CHARS,
    SURROGATE,
    RecordLines,
    open_source,
    plain_lines,
    repair_fields,
)
from pipeline.errors import DamagedInputError

JSON_CHARS = 2**20  # of an array, read at a time

_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path, columns: Sequence[str], encoding: str = "utf-8") -> Iterator[SourceRecord]:
    """Yield the objects of json lines, or of one array; columns missing in an object are null.

    Objects of an array are numbered from 1.

    Raises:
        ConfigError: The path is not a file.
        DamagedInputError: The file is empty, or it is an array with an error.
        DataRefusedError: Gzip is a decompression bomb.
    """
    with open_source(path, encoding) as file, translate_text_errors(path, encoding):
        is_array = file.read(JSON_CHARS).lstrip().startswith("[")
    with open_source(path, encoding) as file:
        for record in _array_items(file, path) if is_array else plain_lines(RecordLines(file, path)):
            repaired = repair_fields([record.text], encoding)
            if record.defect or not repaired:
                yield record._replace(defect=record.defect or "bad_encoding")
            else:
                yield _parse_json(record, repaired[0], columns)


def _array_items(file: TextIO, path: Path) -> Iterator[SourceRecord]:
    """Yield the items of a json array as records without fields, numbered from 1."""
    items = _JsonArray(file, path)
    number = 0
    while (text := items.read_item()) is not None:
        number += 1
        yield SourceRecord(number, {}, text)


class _JsonArray:
    """Reader of the items of a json array, with about one item and JSON_CHARS in memory."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._position, self._num_items = "", 0, 0
        self._take("[")

    def read_item(self) -> str | None:
        """Return the text of the next item; None at the end of the array."""
        if self._next() == "]":
            self._take("]")
            if self._next():
                raise self._error("goes on after its array")
            return None
        if self._num_items:
            self._take(",")
            self._next()
        self._num_items += 1
        while True:
            try:
                _, end = json.JSONDecoder().raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._position > MAX_RECORD_CHARS or not self._fill():
                    raise self._error(f"breaks off or is no json ({error})") from error
                continue
            text, self._position = self._text[self._position : end], end
            return text

    def _next(self) -> str:
        """Skip white space and return the next character; empty at the end of the file."""
        while True:
            space = _JSON_SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text) or not self._fill():
                return self._text[self._position : self._position + 1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._error(f"has no {character} where one must be")
        self._position += 1

    def _fill(self) -> bool:
        """Read more text; return False at the end of the file."""
        with translate_text_errors(self._path, self._file.encoding):
            more = self._file.read(JSON_CHARS)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _error(self, problem: str) -> DamagedInputError:
        return DamagedInputError(
            f"{self._path} {problem}, at item {self._num_items:,} of its array; write it again from "
            "its source"
        )


def _parse_json(record: SourceRecord, text: str, columns: Sequence[str]) -> SourceRecord:
    """Return a record with the fields of its json `text`, or with its defect."""
    try:
        value = json.loads(text, object_pairs_hook=_members)
    except BadRecordError as error:
        return record._replace(defect=str(error))
    except (ValueError, RecursionError):
        return record._replace(defect="not_json")
    if not isinstance(value, dict):
        return record._replace(defect="not_an_object")
    chosen = {name: value.get(name) for name in columns}
    if any(isinstance(v, dict | list) for v in chosen.values()):
        return record._replace(defect="not_text")
    texts = {name: format_value(v) for name, v in chosen.items()}
    return record._replace(
        fields={
            name: pair_surrogates(text) if text and SURROGATE.search(text) else text
            for name, text in texts.items()
        }
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of a json object; BadRecordError if two have the same key."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise BadRecordError("repeated_key")
    return members
