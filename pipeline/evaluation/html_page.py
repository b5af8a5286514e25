"""The frame of a report: one page that stands on its own, without a word from elsewhere, in the reader's
light or dark.
"""

import re
from collections.abc import Sequence
from html import escape

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri "
    "'none'; form-action 'none'"
)

NUMBER = re.compile(r"(?:not defined|one class|[+-]?[\d.,]+(?: <span.*)?)?")

STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--dim:#5d6672;--page:#fff;--card:#f5f6f8;--line:#d9dde3;--good:#1a7f37;--bad:#b3261e;
--c0:#2563c9;--c1:#c2571a;--c2:#2e8540;--c3:#8a3fa8;--c4:#8a6d00;--c5:#0f7c86;--shade:37,99,201}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#9aa4b1;--page:#15181c;--card:#1e2329;--line:#373e47;--good:#57c774;--bad:#ff8a80;
--c0:#7fb0ff;--c1:#f2a46f;--c2:#7ed492;--c3:#d39af0;--c4:#e0c35a;--c5:#67d3dd;--shade:127,176,255}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;max-width:1180px;padding:1.2rem}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1rem 0 .4rem}
.dim{color:var(--dim)}.verdict{padding:.7rem 1rem;border-radius:6px;background:var(--card);border-left:6px solid var(--dim);margin:.8rem 0}
.verdict.passed{border-color:var(--good)}.verdict.refused{border-color:var(--bad)}.passed b{color:var(--good)}.refused b{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.4rem 0 1rem;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:left;vertical-align:top}th{font-weight:600}
td.number,th.number{text-align:right;white-space:nowrap}td.text{overflow-wrap:anywhere;min-width:4.5rem}
#errors td:nth-child(5){min-width:10rem}#errors td:nth-child(6){min-width:24rem}
.better{color:var(--good)}.worse{color:var(--bad)}.charts{display:flex;flex-wrap:wrap;gap:.8rem}.charts>*{flex:1 1 320px;max-width:420px}
svg{width:100%;height:auto;background:var(--card);border-radius:6px}svg text{font:10px system-ui,sans-serif;fill:var(--dim)}
svg .title{font-size:12px;fill:var(--ink);font-weight:600}.frame{fill:none;stroke:var(--line)}polyline{fill:none;stroke-width:1.6}
.diagonal{stroke:var(--dim);stroke-dasharray:3 4;stroke-width:1}
.line0{stroke:var(--c0)}.line1{stroke:var(--c1)}.line2{stroke:var(--c2)}.line3{stroke:var(--c3)}.line4{stroke:var(--c4)}.line5{stroke:var(--c5)}
svg .text0{fill:var(--c0)}svg .text1{fill:var(--c1)}svg .text2{fill:var(--c2)}svg .text3{fill:var(--c3)}svg .text4{fill:var(--c4)}
svg .text5{fill:var(--c5)}.shaded{background:rgba(var(--shade),calc(var(--share)*.55));text-align:right}
pre{background:var(--card);padding:.8rem;border-radius:6px;overflow-x:auto;font-size:12px}
.filters{position:sticky;top:0;background:var(--page);padding:.5rem 0;display:flex;flex-wrap:wrap;gap:1rem;border-bottom:1px solid var(--line);
z-index:1}select{font:inherit;color:inherit;
background:var(--card);border:1px solid var(--line);border-radius:4px;padding:.1rem .3rem}[hidden]{display:none}
"""

SCRIPT = """
"use strict";
const filters = [...document.querySelectorAll(".filters select")];
function choose() {
  for (const row of document.querySelectorAll("[data-task]")) {
    row.hidden = filters.some(one => one.value !== "" && one.name in row.dataset && row.dataset[one.name] !== one.value);
  }
  const errors = [...document.querySelectorAll("#errors tbody tr")];
  document.querySelector("#shown").textContent = `${errors.filter(row => !row.hidden).length} of ${errors.length} shown`;
}
filters.forEach(one => one.addEventListener("change", choose));
choose();
"""


def page(
    title: str, header: str, filters: dict[str, Sequence[str]], sections: Sequence[tuple[str, str]]
) -> str:
    """The page: header, filters (name -> choices) over all that carries data-<name>, and (heading, content)
    in turn. All but `title` and choices is HTML already.
    """
    choices = "".join(select(name, values) for name, values in filters.items())
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta '
        f'http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{header}<div "
        f'class="filters">{choices}</div>{body}<script>{SCRIPT}</script></body></html>\n'
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
