"""Limit of foreign scripts in a file."""

import re

import pyarrow as pa
import pytest

from pipeline.config.gates import GateConfig


def _titled(build_table, num_rows, foreign, prefix="r"):
    """Build good rows, the first `foreign` of them with Russian titles."""
    titles = ["Кроссовки"] * foreign + ["Trail runner 7"] * (num_rows - foreign)
    parts = [build_table(prefix=f"{prefix}{i}-", ad_title=titles[i : i + 6]) for i in range(0, num_rows, 6)]
    return pa.concat_tables(parts)


@pytest.mark.parametrize(("foreign", "passes"), [(10, False), (9, True), (0, True)])
def test_file_in_a_foreign_script_is_refused(
    great_expectations, validate_tables, build_table, foreign, passes
):
    config = GateConfig(max_quarantined_share=0, max_reason_share=0, scripts={"query-ad": ("latin",)})
    report = validate_tables(_titled(build_table, 60, foreign), config=config)
    assert report.passed == passes
    if not passes:
        assert report.failures == (
            "task=query-ad/part-0.parquet: 10 of 60 texts of ad_title are in other scripts than "
            "latin, more than gate.max_foreign_share, 5.00%;"
            " move such rows to their own task, or add the script to gate.scripts",
        )
    page = report.data_docs.read_text()
    assert f"<tr><td>scripts of query-ad</td><td>{2 if passes else 1} of 2</td>" in page
    passed, total = re.search(r"<tr><td>query-ad</td><td>(\d+) of (\d+)</td>", page).groups()
    assert passed == total


def test_scripts_are_checked_per_file_and_only_if_configured(validate_tables, build_table, tmp_path):
    good, bad = _titled(build_table, 60, 0), _titled(build_table, 60, 60, prefix="s")
    # half of all rows, but all of one file's
    named = GateConfig(scripts={"query-ad": ("latin",)}, max_foreign_share=0.6)
    (failure,) = validate_tables(good, bad, config=named).failures
    assert failure.startswith("task=query-ad/part-1.parquet: 60 of 60 texts of ad_title")
    both = GateConfig(scripts={"query-ad": ("latin", "cyrillic")})
    assert validate_tables(good, bad, config=both).passed
    assert validate_tables(good, bad, config=GateConfig()).passed
