"""Equal keys are found in any number of parts."""

import numpy as np
import pytest

from pipeline.scoring import key_digests
from pipeline.scoring.key_digests import DigestParts, create_file_array, row_id_digests


@pytest.mark.parametrize("part_keys", [1, 7, 1000])
def test_repeated_keys_are_found_in_any_number_of_parts(
    monkeypatch: pytest.MonkeyPatch, part_keys: int
) -> None:
    monkeypatch.setattr(key_digests, "PART_KEYS", part_keys)
    keys = [None if n % 10 == 0 else f"k{n * n % 37}" for n in range(100)]
    parts = DigestParts(len(keys))
    for first in range(0, 100, 9):
        parts.add(first, row_id_digests(keys[first : first + 9], b"salt"))
    found = []
    for key_R, position_R in parts.find_repeated():
        for key in np.unique(key_R):
            found.append(position_R[key_R == key].tolist())
    places: dict[str, list[int]] = {}
    for position, name in enumerate(keys):
        if name is not None:
            places.setdefault(name, []).append(position)
    assert sorted(found) == sorted(repeated for repeated in places.values() if len(repeated) > 1)
    parts.close()


def test_digests_depend_on_the_salt_and_null_has_none() -> None:
    assert (row_id_digests([None], b"a") == 0).all()
    assert (row_id_digests(["x"], b"a") != row_id_digests(["x"], b"b")).any()
    assert create_file_array((0, 2), "<u8").shape == (0, 2)
