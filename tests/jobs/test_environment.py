"""A command works for any user and any locale."""

import getpass
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jobs.environment import HOME_FILES, USER_VARIABLES, name_user, restrict_file_modes
from pipeline.storage.filesystem import open_to_append, put_if_absent, write_json
from tests.support.places import ROOT

UNKNOWN_UID = 54321
MAIN = "from jobs.cli import main; main()"
# changes its user after the imports, because Python may lie where another user cannot read
SHOW_HOME = """
import getpass, os, pwd, sys
from pathlib import Path
from jobs.environment import prepare_environment
if sys.argv[1:]:
    uid = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
prepare_environment()
Path.home().joinpath("file").write_text("x")
print(Path.home(), getpass.getuser(), os.environ.get("NETRC"))
"""


def _run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, timeout=120
    )


@pytest.fixture
def temporary_dir() -> Iterator[Path]:
    """Return a folder in which another user may write."""
    folder = Path("/tmp") / f"relevance-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


HOMES: list[Mapping[str, str]] = [{}, {"HOME": ""}, {"HOME": "/"}, {"HOME": "/nonexistent"}]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_unknown_user_without_a_home_gets_one(temporary_dir: Path) -> None:
    for home in HOMES:
        done = _run(SHOW_HOME, str(UNKNOWN_UID), TMPDIR=str(temporary_dir), **home)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().split() == [
            f"{temporary_dir}/relevance-home-{UNKNOWN_UID}",
            f"uid{UNKNOWN_UID}",
            "None",
        ]
    (temporary_dir / ".netrc").write_text("machine host", encoding="utf-8")
    (temporary_dir / ".netrc").chmod(0o644)
    temporary_dir.chmod(0o755)
    (temporary_dir / "tmp").mkdir(mode=0o777)
    (temporary_dir / "tmp").chmod(0o777)
    done = _run(SHOW_HOME, str(UNKNOWN_UID), TMPDIR=f"{temporary_dir}/tmp", HOME=str(temporary_dir))
    assert done.stdout.decode().split()[2] == f"{temporary_dir}/.netrc", "read-only files stay in use"


def test_writable_home_is_kept(tmp_path: Path) -> None:
    done = _run(SHOW_HOME, HOME=str(tmp_path))
    assert done.stdout.decode().split()[0] == str(tmp_path)
    assert all(not path.startswith("/") for path in HOME_FILES.values())


def test_account_name_is_one_line_for_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"ana\nFORGED": r"ana\nFORGED", "ana\x1b[2J\u202e": r"ana\u001b[2J\u202e", "ana\udcff": "ana?"}
    for name, shown in names.items():
        for variable in USER_VARIABLES:
            monkeypatch.setenv(variable, name)
        name_user()
        assert {getpass.getuser(), *(os.environ[variable] for variable in USER_VARIABLES)} == {shown}


LOCALES: list[Mapping[str, str]] = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1:strict"},
]


@pytest.mark.parametrize("variables", LOCALES)
def test_output_is_utf8_in_every_locale(tmp_path: Path, variables: Mapping[str, str]) -> None:
    for name, message in (
        ("é日本.yaml", "error: config é日本.yaml does not exist"),
        ("é日本\udcff.yaml", "error: argument not UTF-8: é日本?.yaml; write it in UTF-8"),
    ):
        done = _run(MAIN, "validate", "--config", name, HOME=str(tmp_path), **variables)
        assert done.returncode == 2
        assert done.stderr.decode("utf-8").startswith(message)


# the order of main(): streams first, then files
WRITE_ALL = """
import sys
from pathlib import Path
from jobs.console import libraries_in
from jobs.environment import open_closed_streams, use_utf8
open_closed_streams()
use_utf8()
with libraries_in(Path(sys.argv[1])) as console:
    console.say("to stderr")
    console.result("to stdout")
    print("of a library", flush=True)
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_lose_their_own_output_alone(tmp_path: Path, closed: str) -> None:
    log = tmp_path / "libraries.log"
    command = ["bash", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, WRITE_ALL, str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "of a library\n"
    assert done.stdout == ("" if " >&-" in f" {closed}" else "to stdout\n")
    assert done.stderr == ("" if "2>&-" in closed else "to stderr\n")


def test_new_files_are_closed_to_users_outside_the_group(tmp_path: Path) -> None:
    kept = os.umask(0)
    try:
        for mask, modes in ((0, (0o640, 0o750)), (0o022, (0o640, 0o750)), (0o077, (0o600, 0o700))):
            os.umask(mask)
            restrict_file_modes()
            folder = tmp_path / f"{mask:o}"
            folder.mkdir()
            write_json(folder / "a.json", 1)
            os.close(open_to_append(folder / "b.jsonl"))
            assert put_if_absent(folder / "c", b"1")
            assert stat.S_IMODE(folder.stat().st_mode) == modes[1]
            assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {modes[0]}
    finally:
        os.umask(kept)
