"""Which phase leads is shaded at every layer, and said once."""

from __future__ import annotations

import pandas as pd

from vlm_lens.figures.phases import COLOURS, Curves, phase_curves

LEADS = ["input"] * 5 + ["task", "answer", "task", "task", "answer", "answer", "answer"]


def test_each_phase_is_named_once_where_it_leads_longest():
    table = pd.DataFrame({"layer": range(12), "phase": LEADS})
    for phase in COLOURS:
        for column, value in {"": 0.3, "_low": 0.2, "_high": 0.4, "_rank": 2.0}.items():
            table[phase + column] = value
    words = {phase: phase for phase in COLOURS}
    none = pd.DataFrame(columns=["boundary", "layer", "low", "high"])
    fig = phase_curves(Curves(table, "animal-young", "text", words, "9 prompts"), none)
    shaded = [(r.x0, r.x1) for r in fig.layout.shapes]
    assert shaded == [(-0.5, 4.5), (4.5, 5.5), (5.5, 6.5), (6.5, 8.5), (8.5, 11.5)]
    named = {a.text: a.x for a in fig.layout.annotations}
    assert len(fig.layout.annotations) == 3
    assert named == {"input": 2, "task": 7.5, "answer": 10}
