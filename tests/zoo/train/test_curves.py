"""The curves of a training log are what the log says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vlm_lens.zoo.train.curves import draw_curves


def test_curves_follow_the_log(tmp_path: Path) -> None:
    log = [
        {"stage": "text", "step": 5, "context_acc": 0.0, "loss": 3.0},
        {"stage": "text", "step": 10, "context_acc": 0.5, "loss": 2.0},
        {"stage": "vlm", "step": 10, "context_acc": 1.0, "image_name_acc": 0.25},
    ]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, log)))
    draw_curves(tmp_path / "log", tmp_path / "curves.svg")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    space = {"s": "http://www.w3.org/2000/svg"}
    axis = root.find("s:path", space).get("d")  # M left top V bottom H right
    left, top, bottom, right = (float(v) for v in axis.translate({77: 32, 86: 32, 72: 32}).split())
    drawn = [
        [tuple(map(float, p.split(","))) for p in line.get("points").split()]
        for line in root.findall("s:polyline", space)
    ]
    first = [((x - left) / (right - left), (bottom - y) / (bottom - top)) for x, y in drawn[0]]
    assert first == [pytest.approx((0.25, 0.0)), pytest.approx((0.5, 0.5))]
    texts = [t.text for t in root.findall("s:text", space)]
    assert {"text", "vlm", "20 steps", "prompts, text", "names, pictures"} <= set(texts)
    assert "pictures matched" not in texts
