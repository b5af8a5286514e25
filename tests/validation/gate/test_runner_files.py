"""Files that are damaged or break the contract."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamagedInputError
from tests.support.gate_cases import refusal_of
from validation.gate import runner
from validation.gate.report import check_report
from validation.gate.row_checks import RowScan
from validation.gate.runner import GateRun, validate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["market"]), "column market is missing"),
        (lambda t: t.append_column("score", t["weight"]), "column score is not in the contract"),
        (
            lambda t: t.rename_columns(["id", *t.column_names[1:]]),
            "column row_id is missing; column id is not in the contract",
        ),
        (lambda t: t.append_column("label", t["label"]), "column label occurs 2 times; keep one"),
        (
            lambda t: t.set_column(7, "label", pa.array(["0"] * 6)),
            "column label is string, the contract says int32; cast it in the writer",
        ),
        (
            lambda t: t.append_column("u", pa.array([b"0" * 16] * 6, pa.uuid())),
            "column u is not in the contract",
        ),
        (lambda t: t.set_column(1, "query", pa.array([{"a": [1]}] * 6)), "column query is struct<a: list<"),
    ],
    ids=[
        "missing",
        "extra",
        "renamed",
        "twice",
        "text",
        "extension",
        "nested",
    ],
)
def test_contract_violation_is_refused_with_its_differences(validate_tables, build_table, change, message):
    report = validate_tables(change(build_table()))
    failure = report.failures[0]
    assert failure.startswith("task=query-ad/part-0.parquet: ") and message in failure
    assert message in refusal_of(report)
    assert report.files[0].rows == 6 and report.files[0].accepted == 0


def test_contract_violation_does_not_stop_other_files(validate_tables, build_table):
    wrong = build_table("w").drop_columns(["market"])
    report = validate_tables(wrong, build_table(query=[None] * 6), wrong)
    schema, again, empty, share, null = report.failures
    assert schema == "task=query-ad/part-0.parquet: column market is missing; no row was read"
    assert again == "task=query-ad/part-2.parquet: column market is missing; no row was read"
    assert "all were quarantined" in empty and "6 of 6 rows are bad" in share
    assert null.startswith("task=query-ad/part-1.parquet: column query must never be null; 6 of 6 rows")


def test_file_of_a_single_column_is_refused(validate_tables, build_table, great_expectations):
    report = validate_tables(build_table().select(["query"]), pa.table({"x": [1]}), build_table())
    assert [(f.rows, f.accepted) for f in report.files] == [(6, 0), (1, 0), (6, 6)]
    assert "column row_id is missing" in report.failures[0] and "column x is not" in report.failures[1]


class BrokenType(pa.ExtensionType):
    """Extension type whose library reads no file, as a type of another release of it."""

    def __init__(self):
        super().__init__(pa.string(), "tests.broken")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise AttributeError("no attribute 'shape'")


def test_unreadable_extension_type_is_damage_of_its_file_alone(validate_tables, build_table):
    pa.register_extension_type(BrokenType())
    try:
        broken = pa.ExtensionArray.from_storage(BrokenType(), pa.array(["us"] * 6))
        report = validate_tables(build_table().set_column(6, "market", broken), build_table())
    finally:
        pa.unregister_extension_type("tests.broken")
    assert report.damaged == ("task=query-ad/part-0.parquet",)
    assert "part-0.parquet is not whole parquet (" in report.failures[0]
    assert [f.accepted for f in report.files][1] == 6


def test_defect_of_a_check_is_the_refusal_of_its_file(validate_tables, build_table, monkeypatch):
    check_batch = RowScan.check_batch

    def fails(scan, table):
        if table["row_id"][0].as_py().startswith("bad"):
            raise KeyError("a defect")
        return check_batch(scan, table)

    monkeypatch.setattr(RowScan, "check_batch", fails)
    report = validate_tables(build_table("bad"), build_table("good"))
    assert "part-0.parquet cannot be checked (KeyError: 'a defect'); remove it" in report.failures[0]
    assert report.damaged == ("task=query-ad/part-0.parquet",) and report.files[1].accepted == 6


def test_older_verdict_and_rows_stay_until_the_new_are_whole(
    tmp_path, task, build_table, write_rows, monkeypatch
):
    def state():
        paths = [path for path in (tmp_path / "out").rglob("*") if "partitions" not in path.parts]
        paths += (tmp_path / "accepted").rglob("*")
        return {path: path.read_bytes() for path in paths if path.is_file()}

    folders = GateRun(
        write_rows({"query-ad": [build_table()]}), [task], tmp_path / "out", tmp_path / "accepted"
    )
    validate(folders)
    before = state()
    assert before.keys() >= {tmp_path / "out" / "report.json"} and list((tmp_path / "accepted").iterdir())
    write_rows({"query-ad": [build_table("b")]})
    for name in ("find_duplicates", "write_data_docs"):
        with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(runner, name, lambda *_: 1 // 0)
            validate(folders)
        assert state() == before
    write_rows({"query-ad": [build_table().select(["query"])]})
    assert not validate(folders).passed
    assert not (tmp_path / "accepted").exists() and (tmp_path / "out" / "report.json").exists()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"Trail runner")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"row_id,query\n1,shoes\n"),
        lambda path: path.write_bytes(b"PAR2" + path.read_bytes()[4:-4] + b"PAR2"),
        flip_a_bit,
    ],
    ids=["truncated", "zero bytes", "csv", "wrong magic", "bit flip"],
)
def test_damaged_file_is_named_and_other_files_are_checked(tmp_path, task, build_table, write_rows, damage):
    root = write_rows({"query-ad": [build_table("a"), build_table("b")]})
    pq.write_table(
        build_table("b"),
        root / "task=query-ad" / "part-1.parquet",
        compression="none",
        write_page_checksum=True,
    )
    damage(root / "task=query-ad" / "part-1.parquet")
    report = validate(GateRun(root, [task], tmp_path / "out", tmp_path / "accepted"))
    assert report.damaged == ("task=query-ad/part-1.parquet",)
    assert [(f.rows, f.accepted) for f in report.files][0] == (6, 6)
    with pytest.raises(
        DamagedInputError, match=r"task=query-ad/part-1\.parquet is (not whole parquet|damaged)"
    ) as error:
        check_report(report)
    assert error.value.exit_code == 4 and str(error.value).count("part-1.parquet") == 1
    assert not (tmp_path / "accepted").exists()


def test_refusal_names_the_file_once_and_not_an_equal_one(tmp_path, task, build_table, write_rows):
    halves = build_table().set_column(7, "label", pa.array([0.5] * 6))
    run = GateRun(write_rows({"query-ad": [halves]}), [task], tmp_path / "out")
    [failure] = [text for text in validate(run).failures if "part-0" in text]
    (run.data_dir / "task=query-ad" / "part-0.parquet").rename(run.data_dir / "task=query-ad/moved.parquet")
    assert validate(run).failures[0] == failure.replace("part-0", "moved")
    assert failure.startswith(
        "task=query-ad/part-0.parquet: column label holds 0.5 in row 0, which is no int32"
    )
    assert failure.count("part-0") == 1


def test_folder_named_like_a_file_is_refused(tmp_path, task, build_table, write_rows):
    root = write_rows({"query-ad": [build_table("a")]})
    (root / "task=query-ad" / "part-1.parquet").mkdir()
    with pytest.raises(DamagedInputError, match=r"task=query-ad/part-1\.parquet is not a file"):
        validate(GateRun(root, [task], tmp_path / "out"))


def test_nested_rows_are_accepted_and_unread_files_named(tmp_path, write_rows, build_table, task):
    root = write_rows({task.name: [build_table("a"), build_table("b")]})
    folder = root / f"task={task.name}"
    (folder / "market=us" / "day=1").mkdir(parents=True)
    nested = (folder / "part-1.parquet").rename(folder / "market=us" / "day=1" / "part-1.PARQUET")
    (folder / "part-2.parquet.gz").write_bytes(b"x")
    (root / "beside.parquet").write_bytes(b"x")
    report = validate(GateRun(root, [task], tmp_path / "out", tmp_path / "accepted"))
    assert report.passed and report.rows == {task.name: 12}
    assert (tmp_path / "accepted" / nested.relative_to(root)).read_bytes() == nested.read_bytes()
    assert report.warnings == (
        f"2 entries of {root} are not read: beside.parquet, task={task.name}/part-2.parquet.gz; rows are "
        "parquet files below task=<name>/",
    )
