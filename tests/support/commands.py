"""The command as a user types it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RELEVANCE = [str(Path(sys.executable).with_name("relevance"))]


def relevance(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command elsewhere than in the repository."""
    return subprocess.run([*RELEVANCE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=500)


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The json object that ends stdout."""
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))
