"""Servers for tests: PostgreSQL, MLflow, S3, and a proxy that injects faults."""

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
    """Return a port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it is not installed."""
    initdb = shutil.which("initdb")
    if initdb:
        folders = [Path(initdb).resolve().parent]
    else:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    return None


def unprivileged_user() -> dict[str, Any]:
    """Return Popen's arguments for a user other than root, as which PostgreSQL refuses to run."""
    if os.getuid() != 0:
        return {}
    name = next(user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """Run a new PostgreSQL server; yield the SQLAlchemy URI of its database."""
    user, port = unprivileged_user(), free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as root:
        if user:
            shutil.chown(root, user["user"], user["group"])
        folder = f"{root}/data"
        command = [str(programs / "initdb"), "-D", folder, "-U", "mlflow", "--auth", "trust", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, cwd=root, **user)
        settings = [
            f"port={port}",
            f"unix_socket_directories={root}",
            "listen_addresses=127.0.0.1",
            "fsync=off",
        ]
        process = subprocess.Popen(
            [str(programs / "postgres"), "-D", folder, *(f"--{setting}" for setting in settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=root,
            **user,
        )
        try:
            wait_for_port(port, process)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # ends its children too, at once
            process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, backend: str, accounts: bool) -> Iterator[str]:
    """Run `mlflow server` with proxied artifacts; yield its address.

    With `accounts`, the server requires one; that of admin has the password PASSWORD.
    """
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", backend]
    options += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    # jobs are for MLflow's judges and prompts, and take seven processes that import MLflow
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if accounts:
        options = ["--app-name", "basic-auth", *options]
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
        command = [sys.executable, "-m", "mlflow", "server", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(port, process)
            wait_for_health(f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[Any], timeout_s: float = 120) -> None:
    """Wait until a process listens on a port; fail if it ends or the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"no process listens on port {port}")


def wait_for_health(url: str, log: Path, timeout_s: float = 60) -> None:
    """Wait until a server answers at its health URL; fail with its log if the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


S3_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
# one request at a time: S3's conditional writes are atomic, moto's are not
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


@contextlib.contextmanager
def s3_server(*buckets: str, requests_before_auth: int | None = None) -> Iterator[str]:
    """Run an S3 server with buckets; yield its address.

    Args:
        buckets: Names of the buckets.
        requests_before_auth: Number of requests after which keys are checked; None for never.
    """
    port, environment = free_port(), dict(os.environ)
    if requests_before_auth is not None:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(requests_before_auth)
    process = subprocess.Popen(
        [sys.executable, "-c", S3_SERVER, str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        for bucket in buckets:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
            urllib.request.urlopen(request, timeout=30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def guarded_s3_server() -> Iterator[tuple[str, str, str]]:
    """Run an S3 server that checks keys, with the bucket "labels".

    Yields:
        Its address, and a key and secret without any permission.
    """
    import boto3

    with s3_server(requests_before_auth=3) as address:
        settings = {
            "endpoint_url": address,
            "region_name": "us-east-1",
            "aws_access_key_id": "any",
            "aws_secret_access_key": "any",
        }
        boto3.client("s3", **settings).create_bucket(Bucket="labels")
        accounts = boto3.client("iam", **settings)
        accounts.create_user(UserName="nobody")
        key = accounts.create_access_key(UserName="nobody")["AccessKey"]
        yield address, key["AccessKeyId"], key["SecretAccessKey"]


class ProxyFaults:
    """Faults that `proxy` injects, set by the test, and the requests it has received."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []  # method, path
        self.status: int | None = None  # answered in place of the server
        self.content = b'{"error_code": "INTERNAL_ERROR", "message": "made up"}'  # sent with `status`
        self.delay_s = 0.0  # before each answer
        # The next request whose path ends so reaches the server, but its answer is dropped.
        self.lose_answers_to = ""


@contextlib.contextmanager
def proxy(upstream: str, faults: ProxyFaults) -> Iterator[str]:
    """Forward requests to `upstream` with faults; yield the proxy's address."""
    host, _, port = upstream.removeprefix("http://").partition(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            faults.requests.append((self.command, path))
            time.sleep(faults.delay_s)
            if faults.status is not None:
                content = b"" if self.command == "HEAD" else faults.content
                return self.answer(faults.status, content, {"Content-Type": "application/json"})
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "content-length", "connection")
            }
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            if faults.lose_answers_to and path.endswith(faults.lose_answers_to):
                faults.lose_answers_to = ""
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
            return self.answer(response.status, content, dict(response.getheaders()))

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            with contextlib.suppress(OSError):  # the client may have given up
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
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients give up on purpose
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
