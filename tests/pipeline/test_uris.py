"""Accounts and secrets in URIs are found in every spelling, and nothing else is taken for one."""

import time

from pipeline.uris import hide_argument, hide_credentials, holds_credentials

VALUES_WITH = (
    "postgresql://u:x'PW@host/db",
    'postgresql://u:x"PW@host/db',
    "postgresql://u:x PW@host/db",
    "http://u:x'PW@host:5000",
    "postgresql://u/x:PW@host/db",
    "s3://AK/x:PW@b/x",
    "http:/u:PW@host",
    "s3:/AK:PW@bucket/x",
    "http:\\\\u:PW@host",
    "jdbc:postgresql://u:PW@host",
    " postgresql://u:x PW@host",
    "postgresql:////u:PW@host",
    "https://host/path/u:PW@x",
    "postgresql://u%3APW@host/db",
    "postgresql://u:PW%40host/db",
    "http://PW%2Fx@host",
    "mysql://u:p#PW@host",
    "http://u:p?PW@host",
    "https://PW@host",
    "sqlite+pysqlcipher://:PW@/x.db",
    "sqlite+pysqlcipher:///x.db?key=PW",
    "postgresql://host/x?password=%20PW",
    "postgresql://host/x?password='PW'",
    "postgresql://host/x?pass%77ord=PW",
    "postgresql://host/x?a=b;PASS-WORD=PW",
    "http://host/?passphrase=PW",
    "http://host/?key=PW",
    "http://host/?auth=PW",
    "http://host/?private_key=PW",
    "http://host/?user_pass=PW",
    "http://host/?authorization=Basic%20PW",
    "http://host/#access_token=PW",
    "http://host/;token=PW",
    "mssql+pyodbc:///?odbc_connect=PWD%3DPW",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%20%3D%20PW",
    "mssql+pyodbc:///?odbc_connect=UID%3Dsa%3BPWD%3D%7BPW%7D",
    "see http://u:PW@host/x",
)
URIS_WITH = ("//u:PW@host", "u:PW@host", "http:u:PW@host", "PW@host:6379", "u:PW@x://host", "PWD=PW;UID=sa")
VALUES_WITHOUT = (
    "s3://bucket/a@b",
    "s3://bucket/a@b:c",
    "s3://bucket/key=5/token=x/auth=1",
    "mlflow-artifacts:/x",
    "mlflow-artifacts:/x@y",
    "file:///a@b/c",
    "sqlite:////a:b@c/x.db?timeout=3&cache=shared&mode=rw",
    "sqlite+pysqlite:////a:b@c/x.db",
    "http://host:5000/mlflow?workspace=ads",
    "http://[::1]:5000",
    "https://host/x?tasks=2&design=a&monkey=1&author=b",
    "https://host/x?password=&token=%20",
    "postgresql://host/x?sslmode=verify-full&sslkey=/run/client.key&sslcert=/run/client.crt&passfile=/run/pg",
    "postgresql://host/x?require_auth=scram-sha-256&options=-csearch_path%3Dads",
    "mysql://host/x?ssl_key=/run/key.pem&read_default_file=/run/my.cnf&private_key_path=/run/x",
    "mssql+pyodbc://host/x?driver=ODBC+Driver+18&Authentication=ActiveDirectoryMsi&Trusted_Connection=yes",
    "databricks://scope:prefix",
    "/storage/a:b@c/x",
    "C:/ads:new@home",
    "org/model@main",
    "org/model:tag@sha256",
    "user@host:/x",
    "Query: {query} @ {ad_title}, password=none",
    "see https://host:80/x: {query} @ {ad_title}",
)


def test_credentials_of_every_spelling_are_found() -> None:
    assert [text for text in VALUES_WITH if not holds_credentials(text)] == []
    assert [text for text in URIS_WITH if not holds_credentials(text, "uri")] == []
    assert holds_credentials("see http://u:x'PW@host", "prose")


def test_other_texts_are_not_taken_for_credentials() -> None:
    assert [text for text in VALUES_WITHOUT if holds_credentials(text)] == []
    assert not holds_credentials("https://host: {query} @ {ad_title}", "prose")
    assert not holds_credentials("host:6379", "uri") and not holds_credentials("auto", "uri")


def test_user_of_a_database_is_accepted_without_a_password() -> None:
    for user in ("alice", "alice%40corp"):
        for host in ("host:5432/x", "[::1]:5432/x", "/x?host=/run/pg"):
            assert not holds_credentials(f"postgresql://{user}@{host}", allows_user=True)
    for account in ("alice:", "alice%3APW", ":PW", "alice:PW%40x", "al/ice:PW"):
        assert holds_credentials(f"postgresql://{account}@host/x", allows_user=True)


HIDDEN = {
    "http://a:b@h:1/x": "http://***@h:1/x",
    "at postgresql://a:b/c@h/x, s3://bucket/a@b": "at postgresql://***@h/x, s3://bucket/a@b",
    "http://token@h/a@b and http://c:d@e@i": "http://***@h/a@b and http://***@i",
    "https://h/x?v=1&sig=a%2F ftp://h?Access_Token=b'": "https://h/x?v=1&sig=*** ftp://h?Access_Token=***'",
    "/home/a@b //x@y mail@host": "/home/a@b //x@y mail@host",
    "sqlite:////a:b@c/x.db": "sqlite:////a:b@c/x.db",
    "https://h/x?tasks=2&design=a": "https://h/x?tasks=2&design=a",
    "['http://a:b'c@h', 'd@e']": "['http://***@h', 'd@e']",
    "postgresql://\"a\":'b'@h": "postgresql://***@h",
    '{"uri":"http://h:1","by":"a@b"}': '{"uri":"http://h:1","by":"a@b"}',
    "postgresql://a:b%40h/x failed": "postgresql://*** failed",
    "mssql:///?odbc_connect=UID%3Da%3BPWD%3Db&x=1": "mssql:///?odbc_connect=***&x=1",
    "https://h/#access_token=a": "https://h/#access_token=***",
}


def test_accounts_and_secrets_of_urls_are_hidden() -> None:
    assert {text: hide_credentials(text) for text in HIDDEN} == HIDDEN


def test_arguments_keep_their_name_alone() -> None:
    for uri in VALUES_WITH:
        assert hide_argument(f"registry.tracking_uri={uri}") == "registry.tracking_uri=***", uri
        assert "PW" not in hide_argument(uri) and "PW" not in hide_argument(f"{uri}=1"), uri
    for text in ("--config", "a.yaml", "optimizer.learning_rate=1e-4", *VALUES_WITHOUT):
        assert hide_argument(text) == text


def test_long_texts_take_no_quadratic_time() -> None:
    for text in ("x" * 300_000, "x:" * 150_000, "http://" * 20_000, "http://h?" + "token=" * 20_000):
        started_s = time.process_time()
        hide_credentials(text)
        holds_credentials(text, "prose")
        assert time.process_time() - started_s < 60, text[:20]
