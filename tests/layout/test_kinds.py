"""Kinds of positions are texts that know which picture or video they name."""

from __future__ import annotations

import json
import pickle

import pytest

from vlm_lens import Layout
from vlm_lens.errors import PositionError
from vlm_lens.layout.kinds import Kind, runs
from vlm_lens.serial import pack, unpack

KINDS = ("special", "image 0", "image 0", "text", "video 12", "pad")


def test_a_kind_is_its_text_and_knows_the_picture():
    layout = Layout((1,) * 6, (), KINDS)
    assert layout.kinds == KINDS and json.loads(json.dumps(layout.kinds)) == list(KINDS)
    assert [k.medium for k in layout.kinds] == [None, "image", "image", None, "video", None]
    assert [k.number for k in layout.kinds] == [None, 0, 0, None, 12, None]
    assert [(k.number, a, b) for k, a, b in runs(layout.kinds)] == [
        (None, 0, 1), (0, 1, 3), (None, 3, 4), (12, 4, 5), (None, 5, 6),
    ]  # fmt: skip
    for again in (unpack(pack(layout, {}), {}), pickle.loads(pickle.dumps(layout))):
        assert again == layout and again.kinds[4].number == 12


@pytest.mark.parametrize("kind", ["images 0", "image", "image0", "picture 0", "", "image -1"])
def test_a_kind_that_there_is_not_is_refused(kind):
    layout = Layout((1,) * 6, (), KINDS)
    assert layout.of_kind("image 0") == [1, 2] and layout.of_kind("image 7") == []
    with pytest.raises(PositionError, match="no kind of position.*'image 0', 'video 0'"):
        layout.of_kind(kind)
    assert Kind("vision").medium is None  # of a tower, where no picture stands
