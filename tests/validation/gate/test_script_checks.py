"""Shares of foreign scripts in files, and in the small files of a task together."""

from validation.gate.file_checks import FileVerdict
from validation.gate.script_checks import build_script_frame, foreign_counts, script_failures


def verdict(name: str, rows: int, foreign: int, task: str = "one", refused: str = "") -> FileVerdict:
    return FileVerdict(name, task, "", "", rows=rows, refused=refused, foreign={"ad_title": foreign})


def failures(*verdicts: FileVerdict, max_share: float = 0.05) -> list[str]:
    return list(script_failures(verdicts, ("latin",), max_share))


def test_small_files_are_judged_together_for_each_task() -> None:
    good = verdict("good", 100_000, 0)
    small = [verdict(f"s{number}", 9, 9) for number in range(200)]
    assert failures(good, small[0]) == [], "nine texts say nothing"
    (failure,) = failures(good, *small)
    assert failure.startswith(
        "200 small files of task=one, such as s0: 1,800 of 1,800 texts of ad_title are in other scripts than"
    )
    assert failures(small[0], verdict("t", 9, 9, task="other")) == []
    assert failures(*small[:2], max_share=0.0) != [], "no share is allowed"


def test_other_files_do_not_hide_or_repeat_a_foreign_one() -> None:
    foreign = verdict("foreign", 12, 12)
    for others in ([], [verdict("good", 190, 0)], [verdict("damaged", 190, 0, refused="damaged")]):
        (failure,) = failures(foreign, *others)
        assert failure.startswith("foreign: 12 of 12 texts of ad_title")


def test_few_brands_in_many_small_files_pass() -> None:
    files = [verdict(f"s{number}", 10, number % 3 == 0) for number in range(300)]
    assert failures(*files) == []
    counts = foreign_counts(files, 0.05)
    assert len(build_script_frame(counts)) == len(files) + 1
