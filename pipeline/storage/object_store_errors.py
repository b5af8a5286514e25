"""What a store that speaks S3 answers in place of what it was asked for, as our errors: what a second try
cannot mend is an error of the config or the account, the rest may pass.

Listings tell their refusals as errors of no kind, so that status and code are read out of the text; requests
of HEAD have no code, and refusals to delete no status. What the codes mean:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import contextlib
import re
from collections.abc import Iterator

from pipeline.errors import ConfigError, RelevanceError, RetryableError

NO_BUCKET = "NoSuchBucket"  # as the protocol says it

STATUS, CODE = (
    re.compile(r"non-2xx status code: (\d{3})"),
    re.compile(r"<Code>([^<]+)</Code>|\(code: (\w+)\)"),
)

MESSAGE = re.compile(r"<Message>([^<]{1,300})")

# where a machine's role is looked up, for want of a key
ROLE = re.compile(r"performing [A-Z]+ https?://[^/\s]+/latest/(?:api/token|meta-data/)")

NO_REGION = "Received redirect without LOCATION"  # what is made of S3's answer 301

ACCOUNT = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the machine's role, and what "
    "they are allowed to do"
)

PLACE = "check AWS_REGION, AWS_ENDPOINT_URL and the bucket's name in the config"

REMEDIES = {  # of answers with status 400 or none
    "AccessDenied": ACCOUNT,
    "InvalidToken": ACCOUNT,
    "ExpiredToken": ACCOUNT,
    "TokenRefreshRequired": ACCOUNT,
    "InvalidSecurity": ACCOUNT,
    "AuthorizationHeaderMalformed": PLACE,
    "InvalidBucketName": PLACE,
    "IllegalLocationConstraintException": PLACE,
}


@contextlib.contextmanager
def asking(place: str, key: str) -> Iterator[None]:
    """While inside, the store's errors come out as ours. FileNotFoundError: the key has no content."""
    from obstore.exceptions import BaseError, PreconditionError

    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"{key!r} is no key of {place} ({first_line(error)}); use a path inside it"
        ) from error
    except PreconditionError as error:
        raise RetryableError(
            f"{place}/{key} changed while it was read; run the same command again"
        ) from error
    except (FileNotFoundError, PermissionError, BaseError) as error:
        if isinstance(error, FileNotFoundError) and NO_BUCKET not in str(error):
            raise FileNotFoundError(f"{place}/{key} is not there") from error
        raise told(error, place, key) from error


def told(error: Exception, place: str, key: str = "") -> RelevanceError:
    """Our error for one of the store's."""
    text = str(error)
    status = int(found[1]) if (found := STATUS.search(text)) else 0
    code = found[1] or found[2] if (found := CODE.search(text)) else ""
    why = f"{status} {code}: {found[1]}" if code and (found := MESSAGE.search(text)) else first_line(error)
    if code == NO_BUCKET:
        return ConfigError(
            f"{place} lies in no bucket that there is; make the bucket, or correct the config or "
            "AWS_ENDPOINT_URL"
        )
    if ROLE.search(text) and status < 500 and status != 429:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role that may"
        return ConfigError(
            f"{place} cannot be asked: no credentials are set, and the machine has no role ({why}); {remedy}"
        )
    remedy = (
        ACCOUNT
        if refused(error, status)
        else PLACE
        if NO_REGION in text
        else REMEDIES.get(code, "")
        if status in (0, 400)
        else ""
    )
    if remedy:
        return ConfigError(f"{place} refuses access to {key or 'what it holds'} ({why}); {remedy}")
    return RetryableError(f"{place} does not do what it is asked ({why}); run the same command again")


def refused(error: Exception, status: int) -> bool:
    """Whether it is an answer to who asks."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    return status in (401, 403) or isinstance(
        error, PermissionError | PermissionDeniedError | UnauthenticatedError
    )


def unusable(error: Exception, place: str) -> ConfigError:
    """Of a place that cannot even be asked."""
    if re.search(r"Missing(SecretAccessKey|AccessKeyId)", str(error)):
        return ConfigError(
            f"{place} cannot be asked: {first_line(error)}; set both AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or neither"
        )
    return ConfigError(
        f"{place} is no place in an object store ({first_line(error)}); write it as s3://bucket/prefix"
    )


def first_line(error: Exception) -> str:
    """Of an error that shows how it came about in many."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
