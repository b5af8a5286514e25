"""HTML report of a version, for people who decide on its promotion.

The page is self-contained: it loads nothing and follows the reader's light or dark mode. Without its script,
it shows all tasks one below the other. Texts of ads are untrusted, so the templates escape every value.
`report_view.py` decides what the page shows, templates/ how.
"""

import functools
import math
from typing import TYPE_CHECKING

from pipeline.escaping import content_hash, escape_invisible
from pipeline.evaluation.report_view import Axis, VersionReport, report_view
from pipeline.evaluation.svg_charts import inline_svg

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

MAX_TEXT_CHARS = 300  # of a text of a row, invisible characters spelled


def report_page(report: VersionReport) -> str:
    """Render the page."""
    style, script = _asset("report.css"), _asset("report.js")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            view=report_view(report),
            content_security_policy=_content_security_policy(style, script),
            style=style,
            script=script,
        )
    )
    return escape_invisible(page, keep="\n\t")


def _content_security_policy(style: str, script: str) -> str:
    """Return the policy of a page that loads nothing and runs no style or script but these two."""
    return (
        f"default-src 'none'; img-src data:; style-src {content_hash(style)}; "
        f"script-src {content_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> "Markup":
    """Return a style or script of the page as it stands in it."""
    from markupsafe import Markup

    return Markup(_environment().get_template(name).render())


@functools.cache
def _environment() -> "jinja2.Environment":
    """Return the environment of the templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"clip": _clip, "position": _position, "inline_svg": _inline_svg}
    environment.tests["finite"] = math.isfinite
    environment.globals["zip"] = zip
    return environment


def _clip(text: str) -> str:
    """Return a text of at most MAX_TEXT_CHARS characters."""
    # Each invisible character takes up to six when it is spelled.
    spelled = escape_invisible(text[: MAX_TEXT_CHARS + 1])
    return spelled if len(spelled) <= MAX_TEXT_CHARS else f"{spelled[: MAX_TEXT_CHARS - 1]}…"


def _position(value: float, axis: Axis) -> float:
    """Return the position of a value on an axis, 0 to 100."""
    return round(100 * min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low))), 1)


def _inline_svg(svg: str) -> "Markup":
    """Return a chart as safe HTML."""
    from markupsafe import Markup

    return Markup(inline_svg(svg))
