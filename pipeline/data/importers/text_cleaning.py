"""Clean raw product texts: UTF-8, no control characters, no html.

The rules follow from the data:
- Queries, titles and facts are one line each. Control characters become spaces.
- A description begins with a line of facts, "brand, colour", of about 15 characters. Titles often name brands
  that the product only fits, or omit their own: in ESCI it is in the title of 75 % of us and 41 % of jp
  products, the colour in half.
- The first body with text follows. Half of the ESCI products have no description; most of these have bullet
  points.
- Html tags are removed by name, since Japanese titles put real text in <...>. A block tag ends a line, an
  inline tag leaves no gap.
- Surrogates that are encoded one by one are paired. A lone one becomes U+FFFD. Other bytes that are not UTF-8
  are damage.
"""

import html
import re
from collections.abc import Iterable

from pipeline.data.visible_text import is_blank
from pipeline.errors import DamagedInputError

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")

_INLINE_TAG = re.compile(r"</?(?:a|b|em|font|i|img|small|span|strong|sub|sup|u)\b[^<>]*>", re.IGNORECASE)

_BLOCK_TAG = re.compile(
    r"< ?/?(?:blockquote|br|center|div|h[1-6]|hr|li|ol|p|table|tbody|td|th|tr|ul)\b[^<>]*>", re.IGNORECASE
)

# with its semicolon: html.unescape alone turns "rock&notes" into "rock¬es"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def decode_text(raw: bytes, where: str) -> str:
    """Decode UTF-8, with surrogates repaired.

    Raises:
        DamagedInputError: The bytes are not UTF-8; the message names `where`.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    try:
        return pair_surrogates(raw.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise DamagedInputError(
            f"{where} is not UTF-8 ({reason}); convert it to UTF-8 or download it again"
        ) from error


def pair_surrogates(text: str) -> str:
    """Join pairs of surrogates; a lone one becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_line(text: str | None) -> str | None:
    """Return `text` as one line without control characters and repeated white space; None if it is blank."""
    return None if not text or is_blank(text) else " ".join(_CONTROL.sub(" ", text).split())


def clean_lines(text: str | None) -> str | None:
    """Return `text` without html tags and entities, as clean lines; None if it is blank."""
    if not text:
        return None
    without_tags = _BLOCK_TAG.sub("\n", _INLINE_TAG.sub("", text))
    plain = _ENTITY.sub(lambda entity: html.unescape(entity[0]), without_tags)
    return "\n".join(filter(None, map(clean_line, plain.splitlines()))) or None


def build_title(title: str | None) -> str | None:
    """Return the title without html on one line; None if it is blank."""
    return clean_line(clean_lines(title))


def build_description(facts: Iterable[str | None], bodies: Iterable[str | None]) -> str | None:
    """Return a line of facts (brand, colour) and the first body with text; None if there is neither."""
    fact_line = ", ".join(filter(None, map(build_title, facts)))
    body = next(filter(None, map(clean_lines, bodies)), "")
    return "\n".join(filter(None, (fact_line, body))) or None
