"""What a bucket answers in place of what it is asked for: what a second try cannot mend, and what it may."""

import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import ConfigError, RetryableError
from pipeline.storage import object_store as store
from pipeline.storage.object_store import Bucket
from tests.support.servers import Trouble, guarded_s3_server, proxy

ACCOUNT, PLACE = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the machine's role",
    "check AWS_REGION, AWS_ENDPOINT_URL",
)
ASKS: dict[str, Callable[[Bucket], object]] = {
    "get": lambda bucket: bucket.get("k"),
    "list": lambda bucket: list(bucket.list("")),
    "put": lambda bucket: bucket.put("k", b""),
    "put_if_absent": lambda bucket: bucket.put_if_absent("k", b""),
    "delete": lambda bucket: bucket.delete("k"),
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str, str]]:
    with guarded_s3_server() as found:
        yield found


@pytest.fixture
def troubled(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """What stands before the buckets that are opened; requests are sent but once."""
    trouble = Trouble()
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setitem(store.RETRIES, "max_retries", 0)
        yield trouble


def s3_error(code: str) -> bytes:
    """As S3 documents it."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Made '
        "up.</Message><RequestId>4</RequestId></Error>"
    ).encode()


@pytest.mark.parametrize("ask", [*ASKS, "exists"])
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_a_store_that_looks_at_who_asks_refuses_a_wrong_account_for_good(
    guarded: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, code: str, ask: str
) -> None:
    address, key_id, secret = guarded
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-s" if code == "InvalidAccessKeyId" else key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret if code == "AccessDenied" else "wrong")
    with pytest.raises(ConfigError) as refused:
        {**ASKS, "exists": lambda bucket: bucket.exists("k")}[ask](Bucket("s3://labels/guarded"))
    assert "s3://labels/guarded refuses access to" in str(refused.value) and ACCOUNT in str(refused.value)
    assert ask == "exists" or code in str(refused.value), "HEAD is answered without a reason"
    assert secret not in str(refused.value)


REFUSALS = [
    (403, "InvalidAccessKeyId", ACCOUNT),
    (403, "SignatureDoesNotMatch", ACCOUNT),
    (403, "AccessDenied", ACCOUNT),
    (401, "Unauthorized", ACCOUNT),
    (400, "InvalidToken", ACCOUNT),
    (400, "ExpiredToken", ACCOUNT),
    (400, "AuthorizationHeaderMalformed", PLACE),
    (400, "InvalidBucketName", PLACE),
    (301, "PermanentRedirect", PLACE),
    (404, "NoSuchBucket", "make the bucket, or correct the config"),
]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(("status", "code", "remedy"), REFUSALS)
def test_what_no_second_try_mends_is_an_error_of_the_config(
    troubled: Trouble, status: int, code: str, remedy: str, ask: str
) -> None:
    troubled.status, troubled.content = status, s3_error(code)
    with pytest.raises(ConfigError) as refused:
        ASKS[ask](Bucket("s3://labels/x"))
    assert "s3://labels/x" in str(refused.value) and remedy in str(refused.value)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError"), (400, "RequestTimeout")],
)
def test_what_may_pass_is_worth_a_retry(troubled: Trouble, status: int, code: str, ask: str) -> None:
    troubled.status, troubled.content = status, s3_error(code)
    with pytest.raises(RetryableError) as told:
        ASKS[ask](Bucket("s3://labels/x"))
    assert str(told.value) == (
        f"s3://labels/x does not do what it is asked ({status} {code}: Made up.); run the same command again"
    )


@pytest.mark.parametrize("ask", ASKS)
def test_a_store_that_is_away_or_does_not_answer_in_time_is_worth_a_retry(
    troubled: Trouble, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setattr(store, "ANSWER_S", 1)
    troubled.delay_s = 2.0
    with pytest.raises(RetryableError, match="s3://labels/x does not do what it is asked"):
        ASKS[ask](Bucket("s3://labels/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match="s3://labels/x does not do what it is asked"):
        ASKS[ask](Bucket("s3://labels/x"))


@pytest.mark.parametrize("ask", ASKS)
def test_no_credentials_on_a_machine_without_a_role_are_an_error_of_the_config(
    troubled: Trouble, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    started_s = time.monotonic()
    for status, nobody in ((404, False), (200, True)):
        monkeypatch.setenv(
            "AWS_METADATA_ENDPOINT", "http://127.0.0.1:9" if nobody else store.os.environ["AWS_ENDPOINT_URL"]
        )
        troubled.status, troubled.content = status, b""
        with pytest.raises(
            ConfigError,
            match=(
                "s3://labels/x cannot be asked: no credentials are set.*; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS"
            ),
        ):
            ASKS[ask](Bucket("s3://labels/x"))
    troubled.status = 503
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", store.os.environ["AWS_ENDPOINT_URL"])
    with pytest.raises(RetryableError):  # the machine's role is looked up where nobody answers just now
        ASKS[ask](Bucket("s3://labels/x"))
    assert time.monotonic() - started_s < 30


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_pair_of_key_and_secret_is_told(
    s3: str, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(
        ConfigError,
        match=(
            "s3://labels/x cannot be asked: .*Missing.*; set both AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or nei"
        ),
    ):
        Bucket("s3://labels/x")
