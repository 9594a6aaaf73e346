"""Sets for probes."""

from __future__ import annotations

import pytest
from PIL import Image

from vlm_lens import RawPrompt
from vlm_lens.probes import ProbeError, ProbeSet


def test_sets_that_make_no_probe_are_refused():
    with pytest.raises(ProbeError, match="all labels are the same"):
        ProbeSet(("a", "b"), ("x", "x"))
    with pytest.raises(ProbeError, match="an entity has one label"):
        ProbeSet(("a", "b"), ("x", "y"), ("e", "e"))
    with pytest.raises(ProbeError, match="one label and one entity"):
        ProbeSet(("a", "b"), ("x",))


def test_equal_prompts_are_one_entity():
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    shown = [RawPrompt("Q:<image>", [picture]) for picture in (red, blue, red.copy(), red)]
    found = ProbeSet((*shown, "a", "b", "a"), ("x", "y", "x", "x", "x", "y", "x"))
    assert [found.entities.index(e) for e in found.entities] == [0, 1, 0, 0, 4, 5, 4]
    with pytest.raises(ProbeError, match="'prompt 0' is 'x' and 'y'.*equal prompts are one"):
        ProbeSet(("a", "b", "a"), ("x", "x", "y"))


def test_sets_of_tasks():
    found = ProbeSet.of_task("animal-class", at_least=8)
    assert set(found.labels) >= {"mammal", "bird"}
    assert min(found.labels.count(label) for label in set(found.labels)) >= 8
    assert found.shows_pictures and isinstance(found.prompts[0], RawPrompt)
    assert found.text_only()[0].text == "Q:\nA:"
    text = ProbeSet.of_task("animal-class", "text")
    assert not text.shows_pictures
    with pytest.raises(ProbeError, match="fewer than two"):
        ProbeSet.of_task("country-capital")
