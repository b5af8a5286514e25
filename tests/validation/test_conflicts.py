"""Conflicting labels are found as a plain loop over all pairs would find them."""

import random
from collections import defaultdict

import pyarrow as pa

from pipeline.schema import ROW_SCHEMA, TEXT_COLUMNS
from pipeline.split import normalise_query
from validation.conflicts import find_conflicts


def _random_rows(seed: int, num_rows: int) -> list[dict]:
    draw = random.Random(seed).choice
    texts = {name: ["a", "A ", "b"] for name in TEXT_COLUMNS[:2]} | {name: [None, "", "x", "X"] for name in TEXT_COLUMNS[2:]}
    return [{"row_id": f"r{i}", "market": "us", "label": draw([None, 0, 1, 2, 3]), "weight": None}
            | {name: draw(values) for name, values in texts.items()} for i in range(num_rows)]


def test_conflicts_are_those_of_a_plain_loop():
    num_found = 0
    for seed in range(40):
        rows = _random_rows(seed, 3 * seed)
        pairs: dict[tuple, list] = defaultdict(list)
        for row in rows:
            if row["label"] in range(3):  # 3 is off the scale
                pairs[tuple(normalise_query(row[name] or "") for name in TEXT_COLUMNS)].append(row)
        expected = [members for members in pairs.values() if len({row["label"] for row in members}) > 1]
        found = find_conflicts(pa.Table.from_pylist(rows, ROW_SCHEMA), num_labels=3)
        assert (found.num_pairs, found.num_rows) == (len(expected), sum(map(len, expected)))
        labels = {row["row_id"]: row["label"] for row in rows}
        for example in found.examples:
            assert all(labels[row_id] == label for row_id, label in example)
            assert len({label for _, label in example}) == len(example) > 1
        num_found += found.num_pairs
    assert num_found > 100
