"""`relevance validate`: the data gate."""

from typing import Any

from pipeline.config import RunConfig
from pipeline.logs import Console
from validation.gate import check_report, validate


def run_validate(config: RunConfig, console: Console) -> dict[str, Any]:
    """Judge the judged rows; DataRefusedError when they do not pass. The report and its pages are written either way."""
    with console.progress("validate", len(config.tasks), "tasks") as progress:
        report = validate(config.judged_dir, config.tasks, config.run_dir / "validation", progress=lambda _, done, __: progress.update(done))
    console.say(f"  {sum(report.rows.values()):,} rows {'pass' if report.passed else 'do NOT pass'}; Data Docs: {report.data_docs}")
    check_report(report)
    return {"data_digest": report.data_digest, "data_docs": str(report.data_docs), "rows": dict(report.rows)}
