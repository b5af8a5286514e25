"""Text of others, such as ads, file names and markets, made safe to show.

Control characters steer terminals, direction marks reorder a line, and line breaks begin a forged one.
"""

import base64
import hashlib
import re

# control characters, direction marks, line and paragraph separators, the byte order mark, undecoded bytes
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

SHORT_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets compute such cells

_MARKDOWN = re.compile(r"[!\"#$%&'()*+./:<=>?@\[\\\]^_`{|}~]")  # a backslash takes the meaning of each


def escape_invisible(text: str, keep: str = "") -> str:
    r"""Return a text with its invisible characters spelled as in JSON, such as \u202e.

    Args:
        text: Any text, or JSON, whose meaning stays.
        keep: Characters that stay, such as the line breaks of a text of several lines.
    """
    return INVISIBLE.sub(lambda match: match[0] if match[0] in keep else _spell(match[0]), text)


def one_line(text: str) -> str:
    """Return a text of the environment, such as an account's name, for a record: undecoded bytes become ?."""
    return escape_invisible(text.encode(errors="replace").decode())


def guard_formula(text: str) -> str:
    """Return the text of a csv cell, with an apostrophe before it if a spreadsheet would compute it."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def escape_markdown(text: str) -> str:
    """Return a text for a paragraph, an item or a cell of Markdown, in which nothing of it is markup."""
    return _MARKDOWN.sub(r"\\\g<0>", escape_invisible(text))


def markdown_code(text: str) -> str:
    """Return a text as a code span of Markdown, outside tables."""
    shown = escape_invisible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{shown}{fence}" if len(fence) == 1 else f"{fence} {shown} {fence}"


def content_hash(content: str) -> str:
    """Return the source expression of a content security policy that allows an inline style or script."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _spell(character: str) -> str:
    return SHORT_ESCAPES.get(character, f"\\u{ord(character):04x}")
