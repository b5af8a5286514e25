"""Accounts and secrets in URIs: found in a setting, hidden in a text.

A password may hold any character, and most programs that take a URI read it up to the last @.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote, unquote_plus

# value: a text that is one URI if it begins with a scheme, blanks included; else a text with URIs in it
# uri: one URI, in any spelling
# prose: a text with URIs in it
TextKind = Literal["value", "uri", "prose"]

HIDDEN = "***"

_SCHEME = re.compile(r"[^\s@/\\]{2,}:[/\\]{1,2}")  # a slash may be missing; one letter is a drive
_SQLITE_FILE = re.compile(r"sqlite(\+\w+)?:///", re.IGNORECASE)  # a path follows, which has no account
# from the start of a word alone, or a long word takes minutes
# a quote ends the URI where a blank, a mark of lists or nothing follows
_URI_IN_TEXT = re.compile(r"(?<![\w+.-])[\w+.-]+://(?:[^\s'\"]|['\"](?![\s,;)\]}]|$))+")
_SEPARATOR = re.compile(r"([?&;#])")  # of the fields of queries, fragments and ODBC settings
_FIELD_NAME = re.compile(r"[\w.\s-]+")
_AROUND_VALUE = " \t\r\n'\"{}"

# matched without case, - and _
_SECRET_NAMES = frozenset(("auth", "authorization", "bearer", "jwt", "key", "pass", "pw", "sas", "sig"))
_SECRET_PARTS = (
    *("password", "passwd", "passphrase", "passcode", "pwd", "userpass"),
    *("secret", "token", "signature", "credential"),
    *("accesskey", "accountkey", "apikey", "privatekey", "sharedkey"),
)
_FILE_ENDINGS = ("file", "path")  # of names such as passfile: the value is where the secret lies


def holds_credentials(text: str, kind: TextKind = "value", allows_user: bool = False) -> bool:
    """Return whether a text holds a URI with an account, such as name:password@ or token@, or a secret field.

    Args:
        text: A setting or an address.
        kind: How to read the text.
        allows_user: Accept a name before an @ without a password, as URIs of databases have.
    """
    text = text.strip()
    if kind == "uri" or (kind == "value" and _SCHEME.match(text)):
        return _has_account(text, allows_user) or any(map(_is_secret_field, _SEPARATOR.split(text)))
    return any(holds_credentials(uri, "uri", allows_user) for uri in _URI_IN_TEXT.findall(text))


def hide_credentials(text: str) -> str:
    """Return a text without the accounts and secrets of the URIs in it."""
    return _URI_IN_TEXT.sub(lambda uri: _hide_secret_fields(_hide_account(uri[0])), text)


def hide_argument(argument: str, kind: TextKind = "value") -> str:
    """Return an argument of a command; of one whose value holds credentials, return the name alone."""
    name, separator, value = argument.partition("=")
    if separator and holds_credentials(value, kind) and not holds_credentials(name):
        return f"{name}={HIDDEN}"
    return HIDDEN if holds_credentials(argument, kind) else argument


def _has_account(uri: str, allows_user: bool) -> bool:
    if _SQLITE_FILE.match(uri):
        return False
    scheme = _SCHEME.match(uri)
    has_authority = not scheme or scheme[0].endswith(("//", "\\\\"))
    written = uri[scheme.end() :] if scheme else uri
    for rest in (written, unquote(written)):
        if ":" in rest.rpartition("@")[0]:
            return True
        if has_authority and not allows_user and "@" in re.split(r"[/?#\\]", rest)[0]:
            return True
    return False


def _is_secret_field(field: str) -> bool:
    """Return whether a field, or a field inside its encoded value, has a secret's name and a value."""
    for inner in _SEPARATOR.split(unquote_plus(field)):
        parts = [part.strip(_AROUND_VALUE) for part in inner.split("=")]
        if any(_is_secret_name(name) and any(parts[number:]) for number, name in enumerate(parts, 1)):
            return True
    return False


def _is_secret_name(name: str) -> bool:
    plain = re.sub(r"[\W_]", "", name).lower()
    if not _FIELD_NAME.fullmatch(name) or plain.endswith(_FILE_ENDINGS):
        return False
    return plain in _SECRET_NAMES or any(part in plain for part in _SECRET_PARTS)


def _hide_account(uri: str) -> str:
    if not _has_account(uri, allows_user=False):
        return uri
    scheme, _, rest = uri.partition("://")
    before, at, after = rest.rpartition("@")
    if ":" not in before:
        authority, place = re.match(r"([^/?#\\]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
        _, at, host = authority.rpartition("@")
        after = host + place
    return f"{scheme}://{HIDDEN}@{after}" if at else f"{scheme}://{HIDDEN}"


def _hide_secret_fields(uri: str) -> str:
    fields = _SEPARATOR.split(uri)
    return "".join(f"{f.partition('=')[0]}={HIDDEN}" if _is_secret_field(f) else f for f in fields)
