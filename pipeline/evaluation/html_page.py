"""The frame of a report: one page that stands on its own, without a word from elsewhere, in the reader's
light or dark.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri "
    "'none'; form-action 'none'"
)

NUMBER = re.compile(r"(?:not defined|one class|[+-]?[\d.,]+(?: <span.*)?)?")


def page(
    title: str, header: str, filters: dict[str, Sequence[str]], sections: Sequence[tuple[str, str]]
) -> str:
    """The page: header, filters (name -> choices) over all that carries data-<name>, and (heading, content)
    in turn. All but `title` and choices is HTML already.
    """
    choices = "".join(select(name, values) for name, values in filters.items())
    style, script = (Path(__file__).with_name(name).read_text() for name in ("report.css", "report.js"))
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta '
        f'http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><h1>{escape(title)}</h1>{header}<div "
        f'class="filters">{choices}</div>{body}<script>{script}</script></body></html>\n'
    )


def select(name: str, values: Sequence[str]) -> str:
    """A filter."""
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>'


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], attributes: Sequence[str] = (), table_id: str = ""
) -> str:
    """Cells are HTML already; columns of numbers stand to the right. `attributes`: of each row."""
    given = attributes or [""] * len(rows)
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    numeric = [
        bool(column) and all(NUMBER.fullmatch(content) for content in column)
        for column in zip(*rows, strict=True)
    ]
    body = "".join(
        f"<tr{more}>{''.join(map(cell, row, numeric))}</tr>" for row, more in zip(rows, given, strict=True)
    )
    marked = f' id="{table_id}"' if table_id else ""
    return (
        f'<div class="wide"><table{marked}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def cell(content: str, numeric: bool) -> str:
    """A table's cell."""
    return f'<td class="{"number" if numeric else "text"}">{content}</td>'


def data(**values: str) -> str:
    """Attributes that filters read."""
    return "".join(f' data-{name}="{escape(value)}"' for name, value in values.items())
