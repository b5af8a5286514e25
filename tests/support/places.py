"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("models", "pipeline", "validation", "jobs", "infra", "tests")
SHARED_DATA = ROOT.parent / "shared" / "data"


def read_readmes() -> dict[str, str]:
    """Return the text of each README of the repository by its path."""
    paths = [ROOT / "README.md", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}
