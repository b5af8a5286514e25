"""Facts that obstore gives only in the text of its errors.

obstore's exceptions have no attributes for the HTTP status and the S3 error code. Listings even fail with
the general `BaseError` for every refusal, so only the text distinguishes a wrong key from an outage. The text
is undocumented; it comes from the Rust crate object_store.
"""

import re
from dataclasses import dataclass

_STATUS = re.compile(r"non-2xx status code: (\d{3})")

_CODE = re.compile(r"<Code>([^<]+)</Code>|\(code: (\w+)\)")

_MESSAGE = re.compile(r"<Message>([^<]{1,300})")

# without a key, credentials are requested from the metadata service of the machine
_ROLE_LOOKUP = re.compile(r"performing [A-Z]+ https?://[^/\s]+/latest/(?:api/token|meta-data/)")

_REGION_REDIRECT = "Received redirect without LOCATION"  # obstore's text for S3's status 301

_MISSING_CREDENTIAL = re.compile(r"Missing(SecretAccessKey|AccessKeyId)")


@dataclass(frozen=True)
class StoreFailure:
    """An error of obstore, parsed."""

    status: int  # HTTP status; 0 if the text has none, as for deletions
    code: str  # S3 error code; empty if the text has none, as for HEAD requests
    reason: str  # short text for messages
    is_role_lookup: bool  # the request for the credentials of the machine's role failed
    is_region_redirect: bool  # the bucket is in another region


def parse_error(error: Exception) -> StoreFailure:
    """Parse an error of a request."""
    text = str(error)
    status_match, code_match, message_match = (pattern.search(text) for pattern in (_STATUS, _CODE, _MESSAGE))
    status = int(status_match[1]) if status_match else 0
    code = code_match[1] or code_match[2] if code_match else ""
    reason = f"{status} {code}: {message_match[1]}" if code and message_match else first_line(error)
    return StoreFailure(status, code, reason, bool(_ROLE_LOOKUP.search(text)), _REGION_REDIRECT in text)


def lacks_key_or_secret(error: Exception) -> bool:
    """Return True if a client was refused because only one of key id and secret key is set."""
    return bool(_MISSING_CREDENTIAL.search(str(error)))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; obstore appends a multi-line trace of causes."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
