"""Answers of a store that no retry can change are config errors; the others are worth a retry."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import ConfigError, RetryableError
from pipeline.storage import object_store
from pipeline.storage.object_store import Bucket
from tests.support.servers import ProxyFaults, guarded_s3_server, proxy

CHECK_ACCOUNT = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the machine's role"
CHECK_LOCATION = "check AWS_REGION, AWS_ENDPOINT_URL"
REQUESTS: dict[str, Callable[[Bucket], object]] = {
    "get": lambda bucket: bucket.get("k"),
    "list": lambda bucket: list(bucket.list("")),
    "put": lambda bucket: bucket.put("k", b""),
    "put_if_absent": lambda bucket: bucket.put_if_absent("k", b""),
    "delete": lambda bucket: bucket.delete("k"),
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str, str]]:
    with guarded_s3_server() as server:
        yield server


@pytest.fixture
def troubled(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyFaults]:
    """Put a proxy that misbehaves as configured before the store; requests are sent once."""
    trouble = ProxyFaults()
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setitem(object_store.RETRY_CONFIG, "max_retries", 0)
        yield trouble


def s3_error(code: str) -> bytes:
    """Return the body of an S3 error answer."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Made '
        "up.</Message><RequestId>4</RequestId></Error>"
    ).encode()


@pytest.mark.parametrize("request_name", [*REQUESTS, "exists"])
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_wrong_account_is_a_config_error_without_the_secret(
    guarded: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, code: str, request_name: str
) -> None:
    address, key_id, secret = guarded
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-s" if code == "InvalidAccessKeyId" else key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret if code == "AccessDenied" else "wrong")
    with pytest.raises(ConfigError) as refused:
        requests = {**REQUESTS, "exists": lambda bucket: bucket.exists("k")}
        requests[request_name](Bucket("s3://labels/guarded"))
    assert "s3://labels/guarded refuses access to" in str(refused.value) and CHECK_ACCOUNT in str(
        refused.value
    )
    assert request_name == "exists" or code in str(refused.value), "answers to HEAD have no error code"
    assert secret not in str(refused.value)


REFUSALS = [
    (403, "InvalidAccessKeyId", CHECK_ACCOUNT),
    (403, "SignatureDoesNotMatch", CHECK_ACCOUNT),
    (403, "AccessDenied", CHECK_ACCOUNT),
    (401, "Unauthorized", CHECK_ACCOUNT),
    (400, "InvalidToken", CHECK_ACCOUNT),
    (400, "ExpiredToken", CHECK_ACCOUNT),
    (400, "AuthorizationHeaderMalformed", CHECK_LOCATION),
    (400, "InvalidBucketName", CHECK_LOCATION),
    (301, "PermanentRedirect", CHECK_LOCATION),
    (404, "NoSuchBucket", "create it, or correct the config"),
]


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize(("status", "code", "remedy"), REFUSALS)
def test_permanent_refusal_is_a_config_error_with_its_remedy(
    troubled: ProxyFaults, status: int, code: str, remedy: str, request_name: str
) -> None:
    troubled.status, troubled.content = status, s3_error(code)
    with pytest.raises(ConfigError) as refused:
        REQUESTS[request_name](Bucket("s3://labels/x"))
    assert "s3://labels/x" in str(refused.value) and remedy in str(refused.value)


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError"), (400, "RequestTimeout")],
)
def test_temporary_failure_is_worth_a_retry(
    troubled: ProxyFaults, status: int, code: str, request_name: str
) -> None:
    troubled.status, troubled.content = status, s3_error(code)
    with pytest.raises(RetryableError) as failed:
        REQUESTS[request_name](Bucket("s3://labels/x"))
    assert str(failed.value) == (
        f"request to s3://labels/x failed ({status} {code}: Made up.); run the same command again"
    )


@pytest.mark.parametrize("request_name", REQUESTS)
def test_unreachable_or_slow_store_is_worth_a_retry(
    troubled: ProxyFaults, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1)
    troubled.delay_s = 2.0
    with pytest.raises(RetryableError, match="request to s3://labels/x failed"):
        REQUESTS[request_name](Bucket("s3://labels/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match="request to s3://labels/x failed"):
        REQUESTS[request_name](Bucket("s3://labels/x"))


@pytest.mark.parametrize("request_name", REQUESTS)
def test_missing_credentials_and_role_are_a_config_error(
    troubled: ProxyFaults, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    started_s = time.monotonic()
    for status, is_unreachable in ((404, False), (200, True)):
        monkeypatch.setenv(
            "AWS_METADATA_ENDPOINT",
            "http://127.0.0.1:9" if is_unreachable else os.environ["AWS_ENDPOINT_URL"],
        )
        troubled.status, troubled.content = status, b""
        with pytest.raises(
            ConfigError,
            match=(
                "s3://labels/x is not accessible: no credentials are set.*; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS"
            ),
        ):
            REQUESTS[request_name](Bucket("s3://labels/x"))
    troubled.status = 503
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", os.environ["AWS_ENDPOINT_URL"])
    with pytest.raises(RetryableError):  # the metadata service fails for the moment
        REQUESTS[request_name](Bucket("s3://labels/x"))
    assert time.monotonic() - started_s < 30


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_key_without_secret_is_a_config_error(s3: str, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(
        ConfigError,
        match=(
            "s3://labels/x is not accessible: .*Missing.*; set both AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or nei"
        ),
    ):
        Bucket("s3://labels/x")
