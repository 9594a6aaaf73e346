"""The order of the phases, as it is judged."""

from __future__ import annotations

import pytest

from vlm_lens.reproduce.experiments.phases import _ordered


@pytest.mark.parametrize(
    ("order", "holds"),
    [
        ("IIITTTAA", True),
        ("IITITTAA", True),  # the task leads from layer 2 on, the answer from 6 on, to the end
        ("TIITTTAA", False),
        ("IIITTTAT", False),  # the answer does not lead at the end
        ("IAITTTAA", False),  # the answer came before the task
        ("IIIAAAAA", False),
        ("IIITTTTT", False),
    ],
)
def test_phases_are_in_order(order, holds):
    assert _ordered(order) is holds
