"""Real servers for tests: PostgreSQL and MLflow from installed programs, and a proxy that misbehaves in
between.
"""

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PASSWORD = "a long enough password"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, where it is installed."""
    found = shutil.which("initdb")
    places = (
        [Path(found).resolve().parent]
        if found
        else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next(
        (place for place in places if (place / "initdb").is_file() and (place / "postgres").is_file()), None
    )


def unprivileged() -> dict[str, Any]:
    """What Popen needs so that PostgreSQL, which refuses to be root, is not."""
    if os.getuid() != 0:
        return {}
    name = next(one.pw_name for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody"))
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """A database of its own; its address for SQLAlchemy."""
    who, port = unprivileged(), free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as root:
        if who:
            shutil.chown(root, who["user"], who["group"])
        folder = f"{root}/data"
        words = [str(programs / "initdb"), "-D", folder, "-U", "mlflow", "--auth", "trust", "--no-sync"]
        subprocess.run(words, check=True, capture_output=True, cwd=root, **who)
        settings = [
            f"port={port}",
            f"unix_socket_directories={root}",
            "listen_addresses=127.0.0.1",
            "fsync=off",
        ]
        process = subprocess.Popen(
            [str(programs / "postgres"), "-D", folder, *(word for one in settings for word in ("-c", one))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=root,
            **who,
        )
        try:
            wait_for_port(port, process)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, with its children
            process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, backend: str, accounts: bool) -> Iterator[str]:
    """`mlflow server` with proxied artifacts; its address. With `accounts`, admin's password is PASSWORD."""
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", backend]
    words += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    if accounts:
        words = ["--app-name", "basic-auth", *words]
        config = folder / "auth.ini"
        authorize = "mlflow.server.auth:authenticate_request_basic_auth"
        lines = [
            "[mlflow]",
            "default_permission = NO_PERMISSIONS",
            f"database_uri = {backend}",
            "admin_username = admin",
        ]
        config.write_text("\n".join([*lines, f"authorization_function = {authorize}"]) + "\n")
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
        }
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", *words]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(port, process)
            wait_for_health(f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[Any], at_most_s: float = 120) -> None:
    """Until somebody listens."""
    deadline_s = time.monotonic() + at_most_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


def wait_for_health(url: str, log: Path, at_most_s: float = 60) -> None:
    """Until the server says it is well."""
    deadline_s = time.monotonic() + at_most_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


S3_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
# one request after the other: between its look and its write another may not come, as S3 promises
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


@contextlib.contextmanager
def s3_server(*buckets: str, unguarded: int | None = None) -> Iterator[str]:
    """A server that speaks S3, with buckets; its address. It looks at who asks after so many requests, if any
    number is given.
    """
    port, environment = (
        free_port(),
        os.environ | ({} if unguarded is None else {"INITIAL_NO_AUTH_ACTION_COUNT": str(unguarded)}),
    )
    words = [sys.executable, "-c", S3_SERVER, str(port)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        for bucket in buckets:
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT"), timeout=30
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def guarded_s3_server() -> Iterator[tuple[str, str, str]]:
    """A server that speaks S3, with the bucket labels, and looks at who asks; its address, and a key and its
    secret that may do nothing.
    """
    import boto3

    with s3_server(unguarded=3) as address:
        anybody = {
            "endpoint_url": address,
            "region_name": "us-east-1",
            "aws_access_key_id": "any",
            "aws_secret_access_key": "any",
        }
        boto3.client("s3", **anybody).create_bucket(Bucket="labels")
        accounts = boto3.client("iam", **anybody)
        accounts.create_user(UserName="nobody")
        made = accounts.create_access_key(UserName="nobody")["AccessKey"]
        yield address, made["AccessKeyId"], made["SecretAccessKey"]


class Trouble:
    """What goes wrong between a client and a server; set by the test. And what was asked, as (method,
    path).
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.status: int | None = None  # answered in the place of the server
        self.content = b'{"error_code": "INTERNAL_ERROR", "message": "made up"}'  # with the status
        self.delay_s = 0.0  # before each answer
        # of requests whose path ends so, once each time it is set; the server does what was asked
        self.lose_answers_to = ""


@contextlib.contextmanager
def proxy(upstream: str, trouble: Trouble) -> Iterator[str]:
    """An address that hands requests on to `upstream` and answers as `trouble` says."""
    host, _, port = upstream.removeprefix("http://").partition(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            trouble.asked.append((self.command, path))
            time.sleep(trouble.delay_s)
            if trouble.status is not None:
                content = b"" if self.command == "HEAD" else trouble.content
                return self.answer(trouble.status, content, {"Content-Type": "application/json"})
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "content-length", "connection")
            }
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            if trouble.lose_answers_to and path.endswith(trouble.lose_answers_to):
                trouble.lose_answers_to = ""
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
            return self.answer(response.status, content, dict(response.getheaders()))

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            with contextlib.suppress(OSError):  # who asked may have given up
                self.send_response_only(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gave up is what is tested
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
