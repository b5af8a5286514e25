"""Raw product texts as clean ones: UTF-8, no control characters, no html.

What becomes of the texts of an import, decided by looking at the data:
- Queries, titles and facts are one line each; control characters, NUL included, read as spaces.
- A description opens with a line of facts, "brand, colour": titles often name brands that the product only
  fits, or leave out their own (in ESCI it is in the title of 75 % of us and 41 % of jp products, the colour
  in half). The line costs about 15 characters.
- Then comes the first body that says anything: half of the ESCI products have no description, most of these
  have bullet points.
- Html tags go, by name: Japanese titles put real text in <...>. A block tag ends a line, an inline tag leaves
  no gap.
- Surrogates, which some exports encode one by one, are paired again; one alone becomes U+FFFD. Other bytes
  that are not UTF-8 are damage.
"""

import html
import re
from collections.abc import Iterable

from pipeline.errors import DamagedInputError

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")

_INLINE_TAG = re.compile(r"</?(?:a|b|em|font|i|img|small|span|strong|sub|sup|u)\b[^<>]*>", re.IGNORECASE)

_BLOCK_TAG = re.compile(
    r"< ?/?(?:blockquote|br|center|div|h[1-6]|hr|li|ol|p|table|tbody|td|th|tr|ul)\b[^<>]*>", re.IGNORECASE
)

# Only with its semicolon: html.unescape alone turns "rock&notes" into "rock¬es".
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def decode_text(raw: bytes, where: str) -> str:
    """The text in UTF-8 bytes, surrogates repaired. DamagedInputError naming `where` for any other bytes."""
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
    """`text` with surrogates put together in pairs; one alone becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_line(text: str | None) -> str | None:
    """`text` as one line without control characters or runs of white space; None if nothing is left."""
    return (" ".join(_CONTROL.sub(" ", text).split()) or None) if text else None


def clean_lines(text: str | None) -> str | None:
    """`text` without html tags and entities, as clean lines, empty ones left out; None if nothing is left."""
    if not text:
        return None
    plain = _ENTITY.sub(
        lambda entity: html.unescape(entity[0]), _BLOCK_TAG.sub("\n", _INLINE_TAG.sub("", text))
    )
    return "\n".join(filter(None, map(clean_line, plain.splitlines()))) or None


def build_title(title: str | None) -> str | None:
    """The title without html, on one line; None if nothing is left."""
    return clean_line(clean_lines(title))


def build_description(facts: Iterable[str | None], bodies: Iterable[str | None]) -> str | None:
    """A line of the facts known (brand, colour), then the first of the bodies that says anything; None if
    there is neither.
    """
    opening = ", ".join(filter(None, map(build_title, facts)))
    body = next(filter(None, map(clean_lines, bodies)), "")
    return "\n".join(filter(None, (opening, body))) or None
