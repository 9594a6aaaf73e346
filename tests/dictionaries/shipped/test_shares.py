"""What strongest pictures share."""

from __future__ import annotations

import pytest

from vlm_lens.dictionaries.shipped.shares import shared, varied


def test_the_rarest_value_that_nine_of_ten_share():
    known = {f"a{i}": (None, {"domain": "animal", "kind": "bird" if i < 12 else "fish"})
             for i in range(30)}  # fmt: skip
    known |= {f"f{i}": (None, {"domain": "food"}) for i in range(30)}
    found = shared(known, 3, [f"a{i}" for i in range(9)] + ["a20"])
    assert (found.value, found.count, found.all, found.label) == ("bird", 9, 12, "bird (kind)")
    draws = found.chance
    assert draws == pytest.approx(
        (12 * 11 * 10) / 6 * 48 / 75394027566 + 66 / 75394027566, rel=1e-6
    )
    assert shared(known, 3, [f"a{i}" for i in range(5)] + [f"f{i}" for i in range(5)]) is None
    mixed = shared(known, 4, [f"a{i}" for i in range(8, 17)] + ["f1"])
    assert mixed.label == "animal"
    assert shared(known, 4, ["a1"] * 9) is None
    assert [s.feature for s in varied([mixed, found, mixed], 2)] == [3, 4]
