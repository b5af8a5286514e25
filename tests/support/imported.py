"""Files that an import published, by the names without digests."""

from pathlib import Path

from pipeline.data.catalog import logical_name


def imported(root: Path, name: str) -> Path:
    """Return the file below `root` that was published as `name`, such as task=two/part-0.parquet."""
    (path,) = (
        path for path in (root / name).parent.glob("*.parquet") if logical_name(path.name) == Path(name).name
    )
    return path


def file_names(root: Path) -> list[str]:
    """Return the names of all files below `root`, sorted, without locks."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(logical_name(str(path.relative_to(root))) for path in paths)
