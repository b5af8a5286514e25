"""Translation of an S3 store's errors into errors for users.

An answer that no retry can change is a ConfigError. All others are RetryableError. Reference for the codes:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import contextlib
from collections.abc import Iterator

from pipeline.errors import ConfigError, RelevanceError, RetryableError
from pipeline.storage.obstore_internals import StoreFailure, first_line, lacks_key_or_secret, parse_error

NO_SUCH_BUCKET = "NoSuchBucket"

CHECK_ACCOUNT = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the machine's role, and what "
    "they are allowed to do"
)

CHECK_LOCATION = "check AWS_REGION, AWS_ENDPOINT_URL and the bucket's name in the config"

REMEDIES = {  # for answers with status 400 or without a status
    "AccessDenied": CHECK_ACCOUNT,
    "InvalidToken": CHECK_ACCOUNT,
    "ExpiredToken": CHECK_ACCOUNT,
    "TokenRefreshRequired": CHECK_ACCOUNT,
    "InvalidSecurity": CHECK_ACCOUNT,
    "AuthorizationHeaderMalformed": CHECK_LOCATION,
    "InvalidBucketName": CHECK_LOCATION,
    "IllegalLocationConstraintException": CHECK_LOCATION,
}


@contextlib.contextmanager
def translate_store_errors(location: str, key: str) -> Iterator[None]:
    """Raise obstore's errors as errors for users.

    Raises:
        FileNotFoundError: The key does not exist.
        ConfigError: The key, the account or the location is wrong.
        RetryableError: Any other failure.
    """
    from obstore.exceptions import BaseError, PreconditionError

    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"key of {location} is invalid: {key!r} ({first_line(error)}); use a path inside it"
        ) from error
    except PreconditionError as error:
        raise RetryableError(
            f"{location}/{key} changed while it was read; run the same command again"
        ) from error
    except (FileNotFoundError, PermissionError, BaseError) as error:
        if isinstance(error, FileNotFoundError) and NO_SUCH_BUCKET not in str(error):
            raise FileNotFoundError(f"{location}/{key} does not exist") from error
        raise to_user_error(error, location, key) from error


def to_user_error(error: Exception, location: str, key: str = "") -> RelevanceError:
    """Return the error for users that corresponds to an error of a request."""
    failure = parse_error(error)
    if failure.code == NO_SUCH_BUCKET:
        return ConfigError(
            f"bucket does not exist: {location}; create it, or correct the config or AWS_ENDPOINT_URL"
        )
    if failure.is_role_lookup and failure.status < 500 and failure.status != 429:
        return ConfigError(
            f"{location} is not accessible: no credentials are set, and the machine has no role "
            f"({failure.reason}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a "
            "role with access"
        )
    remedy = _find_remedy(error, failure)
    if remedy:
        return ConfigError(
            f"{location} refuses access to {key or 'its content'} ({failure.reason}); {remedy}"
        )
    return RetryableError(f"request to {location} failed ({failure.reason}); run the same command again")


def to_location_error(error: Exception, location: str) -> ConfigError:
    """Return the error for users if a client for a location cannot be built."""
    if lacks_key_or_secret(error):
        return ConfigError(
            f"{location} is not accessible: {first_line(error)}; set both AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or neither"
        )
    return ConfigError(
        f"object store URL is invalid: {location} ({first_line(error)}); write it as s3://bucket/prefix"
    )


def _find_remedy(error: Exception, failure: StoreFailure) -> str:
    """Return what the user can do about an answer that no retry changes; empty if a retry may help."""
    if _is_access_refusal(error, failure.status):
        return CHECK_ACCOUNT
    if failure.is_region_redirect:
        return CHECK_LOCATION
    return REMEDIES.get(failure.code, "") if failure.status in (0, 400) else ""


def _is_access_refusal(error: Exception, status: int) -> bool:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    return status in (401, 403) or isinstance(
        error, PermissionError | PermissionDeniedError | UnauthenticatedError
    )
