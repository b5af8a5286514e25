"""obstore's error texts have the form that obstore_internals parses."""

from collections.abc import Callable, Iterator
from importlib.metadata import version

import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline.storage.obstore_internals import StoreFailure, lacks_key_or_secret, parse_error
from tests.support.pinned_versions import pinned_version
from tests.support.servers import ProxyFaults, proxy

HINT = (
    f"obstore {version('obstore')} words its errors unlike the tested {pinned_version('obstore')}; adapt "
    "pipeline/storage/obstore_internals.py"
)
REQUESTS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get("k"),
    "list": lambda store: list(store.list("")),
    "put": lambda store: store.put("k", b"", use_multipart=False),
    "delete": lambda store: store.delete("k"),
}


@pytest.fixture
def trouble(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyFaults]:
    """Put a proxy that misbehaves as configured before the store."""
    trouble = ProxyFaults()
    with proxy(s3, trouble) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield trouble


def request_failure(name: str) -> StoreFailure:
    """Return the parsed error of a request that is sent once."""
    store = S3Store.from_url(
        "s3://labels/x", client_options={"allow_http": True}, retry_config={"max_retries": 0}
    )
    with pytest.raises((BaseError, OSError)) as caught:
        REQUESTS[name](store)
    return parse_error(caught.value)


@pytest.mark.parametrize("name", REQUESTS)
def test_error_text_has_status_and_code(trouble: ProxyFaults, name: str) -> None:
    trouble.status = 400
    trouble.content = b"<Error><Code>InvalidToken</Code><Message>Made up.</Message></Error>"
    expected = StoreFailure(400, "InvalidToken", "400 InvalidToken: Made up.", False, False)
    assert request_failure(name) == expected, HINT


def test_error_text_of_a_deletion_has_the_code(trouble: ProxyFaults) -> None:
    trouble.status = 200
    trouble.content = (
        b"<DeleteResult><Error><Key>x/k</Key><Code>AccessDenied</Code><Message>No.</Message></Error>"
        b"</DeleteResult>"
    )
    failure = request_failure("delete")
    assert (failure.status, failure.code) == (0, "AccessDenied"), HINT


@pytest.mark.parametrize("name", REQUESTS)
def test_error_text_shows_a_redirect_to_another_region(trouble: ProxyFaults, name: str) -> None:
    trouble.status, trouble.content = 301, b""
    assert request_failure(name).is_region_redirect, HINT


def test_error_text_shows_a_failed_role_lookup(trouble: ProxyFaults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    assert request_failure("get").is_role_lookup, HINT


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_error_text_shows_a_missing_credential(
    s3: str, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(BaseError) as caught:
        S3Store.from_url("s3://labels/x")
    assert lacks_key_or_secret(caught.value), HINT
