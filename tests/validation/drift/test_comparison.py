"""Profiles do not depend on how rows are cut, and each planted drift is found in its feature alone."""

import json
import math
import random
import string
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.gates import Script
from pipeline.data.synthetic.marketplace import build_marketplace
from pipeline.errors import ConfigError, DamagedInputError
from pipeline.schema import ROW_SCHEMA
from tests.support.file_splits import write_random_files
from validation.drift import profile
from validation.drift.comparison import ALL_TASKS, Thresholds, compare_profiles
from validation.drift.divergence import divergence
from validation.drift.profile import MAX_NAMED, OTHERS, Tally, build_tally, read_profile, write_profile
from validation.drift.rendering import drift_messages, drift_rows, plot_drift
from validation.text import words
from validation.text.scripts import NO_LETTERS, SCRIPTS, dominant_scripts

NUM_ROWS = 6_000  # a task
NUM_REPLICAS = 6  # pairs of marketplaces that differ by chance alone; comparison.py reports a larger run
CYRILLIC = str.maketrans(string.ascii_lowercase, "абвгдежзийклмнопрстуфхцчшщ")


def _rows(seed: int, num_rows: int = NUM_ROWS) -> list[dict]:
    """Build rows of random words, each with its own query."""
    draw = random.Random(seed)
    words = ["".join(random.Random(i).choices(string.ascii_lowercase, k=3 + i % 6)) for i in range(300)]
    rows = []
    for i in range(num_rows):
        query, title, text = (
            " ".join(draw.choices(words, k=k))
            for k in (draw.randint(2, 5), draw.randint(4, 9), draw.randint(8, 20))
        )
        rows.append(
            {
                "row_id": f"{seed}-{i}",
                "query": query,
                "ad_title": title,
                "ad_description": text if draw.random() < 0.8 else None,
                "market": draw.choice(["us", "us", "gb", "de"]),
                "label": draw.choice([0, 0, 0, 1, 2, 2]),
            }
        )
    return rows


def _table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _tally(rows: list[dict], other_rows: list[dict] | None = None) -> Tally:
    return build_tally({"one": _table(rows), "two": _table(_rows(2) if other_rows is None else other_rows)})


@pytest.fixture(scope="module")
def reference() -> Tally:
    return _tally(_rows(1))


@pytest.fixture(scope="module")
def market() -> dict[str, pa.Table]:
    return build_marketplace(1_000, 0, 1).rows


def _cell(report, feature, task="one"):
    return next(found for found in report.features if (found.feature, found.task) == (feature, task))


@pytest.mark.parametrize("max_markets", [profile.MAX_MARKETS, 2])
def test_merged_tallies_give_the_profile_of_the_whole(tmp_path, market, monkeypatch, max_markets):
    monkeypatch.setattr(profile, "MAX_MARKETS", max_markets)
    of_three = pa.array(random.Random(1).choices(["us", "de", "fr"], k=1_000), pa.string())
    market = {
        name: table.set_column(6, ROW_SCHEMA.field("market"), of_three) for name, table in market.items()
    }
    whole = build_tally(market)
    draw, parts = random.Random(0), []
    for name, table in market.items():
        cuts = sorted(draw.sample(range(table.num_rows + 1), 4))
        parts += [
            {name: table.slice(start, end - start)}
            for start, end in zip([0, *cuts], [*cuts, table.num_rows], strict=True)
        ]
    draw.shuffle(parts)
    merged = Tally()
    for part in parts:
        merged.merge(build_tally(part))
    for path, tally in ((tmp_path / "whole", whole), (tmp_path / "merged", merged)):
        write_profile(path, tally.profile(), "d")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "merged").read_bytes()
    assert read_profile(tmp_path / "whole") == whole.profile() == merged.profile()


def test_files_and_tables_give_equal_profiles(tmp_path, market):
    name, table = next(iter(market.items()))
    whole = json.dumps(build_tally({name: table}).profile().to_json())
    for seed in range(5):
        paths = write_random_files(table, tmp_path / str(seed), seed)
        random.Random(seed).shuffle(paths)
        assert json.dumps(build_tally({name: paths}).profile().to_json()) == whole, seed


def test_texts_are_sampled_and_everything_else_is_counted(tmp_path, market, monkeypatch):
    name, table = next(iter(market.items()))
    whole = build_tally({name: table}).profile().tasks[name]
    monkeypatch.setattr(words, "MAX_TEXT_ROWS", 300)
    for i in range(2):
        pq.write_table(table.slice(i * 500, 500), tmp_path / f"part-{i}.parquet", row_group_size=77)
    part = build_tally({name: sorted(tmp_path.glob("*.parquet"), reverse=True)}).profile()
    assert part == build_tally({name: table}).profile()
    sampled = part.tasks[name]
    assert (sampled.rows, sampled.labels, sampled.markets, sampled.num_queries) == (
        whole.rows,
        whole.labels,
        whole.markets,
        whole.num_queries,
    )
    assert 240 <= sampled.text_rows <= 360
    query = sampled.columns["query"]
    assert (
        query.nulls + sum(query.lengths.values())
        == sum(query.scripts.values()) + query.nulls
        == sampled.text_rows
    )


def test_profile_of_many_tasks_and_scripts_stays_below_200_kb(tmp_path):
    draw = random.Random(1)
    letters = [string.ascii_lowercase, "абвгдежзий", "אבגדהוזח", "กขคงจฉช", "가나다라마"]
    tables = {}
    for task in range(8):
        rows = _rows(task, 600)
        for i, row in enumerate(rows):
            for column in ("query", "ad_title", "ad_description", "ad_keyword", "landing_page"):
                row[column] = " ".join(
                    "".join(draw.choices(letters[i % 5], k=12)) for _ in range(draw.randint(1, 12))
                )
            row["market"] = f"market-{draw.randrange(100):0>50}"
        tables[f"task-{task}"] = _table(rows)
    write_profile(tmp_path / "profile.json", build_tally(tables).profile(), "d")
    size = (tmp_path / "profile.json").stat().st_size
    print(f"{size:,} bytes")
    assert size <= 200_000


def test_equal_data_have_not_drifted(tmp_path, reference, market):
    for tally in (reference, build_tally(market)):
        write_profile(tmp_path / "reference.json", tally.profile(), "d")
        report = compare_profiles(read_profile(tmp_path / "reference.json"), tally)
        assert report == compare_profiles(tally.profile(), tally)
        assert {found.verdict for found in report.features} == {"steady"}
        assert {found.psi for found in report.features} == {found.kl for found in report.features} == {0.0}


def test_psi_and_kl_match_hand_computed_values():
    p, q = [60.5 / 101, 40.5 / 101], [30.5 / 101, 70.5 / 101]
    psi, kl, num = divergence({"a": 60, "b": 40}, {"a": 30, "b": 70})
    assert num == 2 and math.isclose(
        psi, 30 / 101 * math.log(60.5 / 30.5) + 30 / 101 * math.log(70.5 / 40.5), rel_tol=1e-14
    )
    assert math.isclose(kl, q[0] * math.log(q[0] / p[0]) + q[1] * math.log(q[1] / p[1]), rel_tol=1e-13)
    rows = _rows(3, 1_000)
    before, after = ([row | {"label": int(i >= cut)} for i, row in enumerate(rows)] for cut in (600, 300))
    found = _cell(
        compare_profiles(build_tally({"one": _table(before)}).profile(), build_tally({"one": _table(after)})),
        "labels",
    )
    expected = 300 / 1001 * (math.log(600.5 / 300.5) + math.log(700.5 / 400.5))
    assert math.isclose(found.psi, expected, rel_tol=1e-13) and found.verdict == "drift"
    assert found.changes == (("0", 0.6, 0.3), ("1", 0.4, 0.7))


def _transliterated(row: dict, share: float, draw: random.Random) -> dict:
    if draw.random() >= share:
        return row
    return row | {c: row[c] and row[c].translate(CYRILLIC) for c in ("query", "ad_title", "ad_description")}


def _renamed(row: dict) -> dict:
    """Reverse each word that starts with a to k: same length and script, unknown word."""
    return row | {
        c: " ".join(w[::-1] if w[0] <= "k" else w for w in row[c].split()) for c in ("query", "ad_title")
    }


DRIFTS = {
    "labels": (lambda row, draw: row | {"label": 2 if draw.random() < 0.5 else row["label"]}, {"labels"}),
    "market": (
        lambda row, draw: row | {"market": "fr" if draw.random() < 0.3 else row["market"]},
        {"market"},
    ),
    "lengths": (
        lambda row, draw: row | {"ad_title": f"{row['ad_title']} {row['ad_title']}"},
        {"chars:ad_title"},
    ),
    "nulls": (
        lambda row, draw: row | {"ad_description": row["ad_description"] if draw.random() < 0.3 else None},
        {"null:ad_description"},
    ),
    "language": (
        lambda row, draw: _transliterated(row, 0.4, draw),
        {"script:query", "script:ad_title", "script:ad_description"},
    ),
    "vocabulary": (
        lambda row, draw: _renamed(row),
        {"words:query", "words:ad_title", "unknown:query", "unknown:ad_title"},
    ),
}


@pytest.mark.parametrize("kind", DRIFTS)
def test_planted_drift_is_found_in_its_feature_alone(kind, reference):
    change, expected = DRIFTS[kind]
    draw = random.Random(9)
    report = compare_profiles(
        reference.profile(), _tally([change(row, draw) for row in _rows(11)], _rows(12))
    )
    moved = {found.feature for found in report.features if found.verdict in ("look", "drift")}
    assert moved == expected
    assert {found.task for found in report.moved()} <= {"one", ALL_TASKS}
    drifted_of_task = {
        found.feature for found in report.moved() if found.verdict == "drift" and found.task == "one"
    }
    # unknown words are counted over all tasks
    assert drifted_of_task == {feature for feature in expected if not feature.startswith("unknown")}


def test_change_of_task_mix_moves_task_mix_alone(market):
    before = {name: table for name, table in market.items() if name in ("query-title", "query-product")}
    after = {name: build_marketplace(1_000, 0, 2).rows[name] for name in before}
    after["query-title"] = after["query-title"].slice(0, 250)
    report = compare_profiles(build_tally(before).profile(), build_tally(after))
    assert [(found.feature, found.verdict) for found in report.moved()] == [("task_mix", "drift")]
    assert report.moved()[0].changes[0][1:] == (0.5, 0.8)


def test_chance_alone_moves_no_feature():
    tallies = [build_tally(build_marketplace(1_000, 0, 200 + seed).rows) for seed in range(NUM_REPLICAS + 1)]
    reports = [
        compare_profiles(before.profile(), after) for before, after in zip(tallies, tallies[1:], strict=False)
    ]
    named = [
        found for report in reports for found in report.features if found.verdict not in ("steady", "noise")
    ]
    print(f"{len(named)} of {sum(len(r.features) for r in reports)} features named in {len(reports)} pairs")
    assert not named


def test_new_and_missing_categories_give_finite_psi(reference):
    swapped = [row | {"market": "fr" if row["market"] == "gb" else row["market"]} for row in _rows(13)]
    found = _cell(compare_profiles(reference.profile(), _tally(swapped)), "market")
    assert found.verdict == "drift" and math.isfinite(found.psi) and math.isfinite(found.kl)
    shares = {name: (then > 0, now > 0) for name, then, now in found.changes}
    assert shares["fr"] == (False, True) and shares["gb"] == (True, False)


def test_empty_new_or_missing_task_does_not_stop_comparison(reference):
    for other in ([], None):
        sources = {"one": _table(_rows(14))} | ({"two": ROW_SCHEMA.empty_table()} if other == [] else {})
        report = compare_profiles(reference.profile(), build_tally(sources))
        assert (
            _cell(report, "task_mix", ALL_TASKS).verdict == "drift"
            and _cell(report, "labels", "two").verdict == "empty"
        )
        assert {found.verdict for found in report.features if found.task == "one"} == {
            "steady"
        } and report.current_rows["two"] == 0
        assert "two" in drift_rows(report)[0]
    report = compare_profiles(build_tally({"one": _table(_rows(14))}).profile(), reference)
    assert (
        _cell(report, "market", "two").verdict == "empty"
        and _cell(report, "market", ALL_TASKS).verdict == "steady"
    )
    assert all(found.verdict == "empty" for found in compare_profiles(Tally().profile(), reference).features)
    assert compare_profiles(Tally().profile(), Tally()).features == ()


def test_all_null_column_drifts_in_nulls_and_is_empty_elsewhere(reference):
    report = compare_profiles(
        reference.profile(), _tally([row | {"ad_description": None} for row in _rows(15)])
    )
    assert _cell(report, "null:ad_description").verdict == "drift"
    assert {_cell(report, f"{part}:ad_description").verdict for part in ("chars", "script", "words")} == {
        "empty"
    }
    unlabeled = compare_profiles(reference.profile(), _tally([row | {"label": None} for row in _rows(15)]))
    assert [(found.feature, found.verdict) for found in unlabeled.moved()] == [("labels", "empty")]


def test_unnamed_markets_are_compared_as_one(tmp_path):
    draw = random.Random(4)
    before, after = (
        [row | {"market": f"m{draw.randrange(3 * MAX_NAMED)}"} for row in _rows(seed)] for seed in (16, 17)
    )
    reference = build_tally({"one": _table(before)})
    assert (
        len(reference.profile().tasks["one"].markets) == MAX_NAMED + 1
        and OTHERS in reference.profile().tasks["one"].markets
    )
    assert (
        _cell(compare_profiles(reference.profile(), build_tally({"one": _table(after)})), "market").verdict
        == "steady"
    )


def test_distinct_queries_are_estimated_within_ten_percent():
    for number in (10, 300, 2_000, 40_000):
        table = _table(
            [
                {"row_id": str(i), "query": f"query {i % number}", "ad_title": "a", "market": "us"}
                for i in range(max(number, 1_000))
            ]
        )
        assert abs(build_tally({"one": table}).tasks["one"].num_queries() / number - 1) < 0.1, number


def test_dominant_script_is_that_of_most_letters():
    texts = {
        "running shoes 42": "latin",
        "кроссовки nike": "cyrillic",
        "ランニングシューズ 靴": "kana",
        "跑步鞋": "han",
        "حذاء": "arabic",
        "운동화": "hangul",
        "παπούτσι": "greek",
        "जूते": "indic",
        "รองเท้า": "thai",
        "נעל": "hebrew",
        "123 !? 🏃": "none",
        "": "none",
        "ბუტსი": "other",
    }
    assert [SCRIPTS[script] for script in dominant_scripts(pa.array([*texts, None]))] == [
        *texts.values(),
        "none",
    ]


def test_config_accepts_exactly_the_known_scripts():
    assert set(get_args(Script)) == set(SCRIPTS) - {NO_LETTERS}


def test_invalid_profiles_and_thresholds_are_refused(tmp_path, reference):
    path = tmp_path / "profile.json"
    for value in (
        {},
        [],
        {"profile_version": 0},
        reference.profile().to_json() | {"tasks": {"one": {"rows": 1}}},
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(DamagedInputError, match="profile.json is not (a data profile|complete JSON)"):
            read_profile(path)
    for bad in ({"look": 0.3}, {"look": 0}, {"chance": 1}):
        with pytest.raises(ConfigError, match="0 < look <= drift"):
            Thresholds(**bad)


def test_market_is_no_formula_in_the_picture(tmp_path, reference):
    rows = [{**row, "market": r"$\frac$"} for row in _rows(3)]
    plot_drift(compare_profiles(reference.profile(), _tally(rows)), tmp_path / "drift.png")


def test_table_fits_a_screen_and_picture_is_deterministic(tmp_path, reference):
    draw = random.Random(9)
    changed = [
        DRIFTS["language"][0](DRIFTS["lengths"][0](DRIFTS["labels"][0](row, draw), draw), draw)
        for row in _rows(18)
    ]
    report = compare_profiles(reference.profile(), _tally(changed))
    rows = drift_rows(report)
    assert len(rows) <= 40 and len({len(row) for row in rows}) == 1
    assert rows[0] == ["", ALL_TASKS, "one", "two"]
    (labels,) = (row for row in rows if row[0] == "labels")
    assert labels[1] == "" and labels[2].endswith("!") and labels[3].strip() == "0.000"
    assert any(line.startswith("drift: chars:ad_title of one: PSI ") for line in drift_messages(report))
    assert json.loads(json.dumps(report.to_json()))["features"][0]["feature"] == "task_mix"
    plot_drift(report, tmp_path / "drift.png")
    plot_drift(compare_profiles(reference.profile(), reference), tmp_path / "steady.png")
    picture = (tmp_path / "drift.png").read_bytes()
    plot_drift(report, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes() == picture
    assert all(
        (tmp_path / name).read_bytes().endswith(b"IEND\xaeB`\x82") for name in ("drift.png", "steady.png")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drift.png", "steady.png"]
