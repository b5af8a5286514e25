"""Secrets for tests, each with a text of its own that must turn up nowhere."""

import subprocess
from pathlib import Path

WORD = "canary7f3a"  # in every secret


def plant_canaries(folder: Path, working_folder: Path) -> dict[str, str]:
    """Write files and a git remote with secrets; return variables with others and with the files' paths.

    Args:
        folder: New folder for the files.
        working_folder: Where commands will stand.
    """
    folder.mkdir()
    files = {
        "PGPASSFILE": f"*:*:*:alice:{WORD}pgpassfile\n",
        "AWS_SHARED_CREDENTIALS_FILE": f"[default]\naws_secret_access_key = {WORD}awsfile\n",
        "NETRC": f"machine netrc.invalid login alice password {WORD}netrc\n",
        "RAY_AUTH_TOKEN_PATH": f"{WORD}rayfile".ljust(40, "0"),
    }
    for name, content in files.items():
        (folder / name.lower()).write_text(content)
        (folder / name.lower()).chmod(0o600)
    subprocess.run(["git", "init", "-q", str(working_folder)], check=True)
    remote = ["remote", "add", "origin", f"https://alice:{WORD}git@127.0.0.1:9/x.git"]
    subprocess.run(["git", "-C", str(working_folder), *remote], check=True)
    return {name: str(folder / name.lower()) for name in files} | {
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": f"http://alice:{WORD}uri@127.0.0.1:9",
        "MLFLOW_TRACKING_USERNAME": "alice",
        "MLFLOW_TRACKING_PASSWORD": f"{WORD}mlflow",
        "MLFLOW_TRACKING_TOKEN": f"{WORD}mlflowtoken",
        "PGPASSWORD": f"{WORD}pg",
        "AWS_SECRET_ACCESS_KEY": f"{WORD}aws",
        "AWS_SESSION_TOKEN": f"{WORD}session",
        "HF_TOKEN": f"hf_{WORD}",
        "HTTPS_PROXY": f"http://alice:{WORD}proxy@127.0.0.1:9",
        "NO_PROXY": "*",
    }


def files_with_canaries(folder: Path) -> list[Path]:
    """Return the files below a folder that hold a secret, those of git aside."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts and WORD.encode() in path.read_bytes()
    ]
