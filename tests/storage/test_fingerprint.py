from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens.storage.fingerprint import fingerprint

SCALE, CALLS = 2.0, 0


def scaled(logits):
    return logits * SCALE


def counted(logits):
    global CALLS
    CALLS += 1
    return logits


def indirect(logits):
    return scaled(logits)


def made(by):
    return lambda logits: logits[0] * by


def again(by):
    return lambda logits: logits[0] * by


@dataclass(frozen=True)
class Setting:
    value: object

    def read(self, logits):
        return logits[0]


class Plain:
    def __init__(self, value):
        self.value = value

    def __call__(self, logits):
        return logits[self.value]


def palette(*colours):
    picture = Image.new("P", (2, 1))
    picture.putpalette([*colours])
    return picture


def turned(by):
    picture = Image.new("RGB", (2, 1))
    if by:
        exif = picture.getexif()
        exif[0x0112] = by
    return picture


def transparent(colour):
    picture = palette(0, 0, 0, 9, 9, 9)
    picture.info["transparency"] = colour
    return picture


DIFFERENT = [
    None, True, 1, 1.0, "1", b"1", (), (1,), (1, 2), ((1,), 2), (1, (2,)), "ab", ("a", "b"), {},
    {"a": 1}, {"a": 2}, {1, 2}, range(3), float("nan"), 2**70, -0.0, 0.0,
    torch.ones(2), torch.ones(2, 1), torch.ones(2, dtype=torch.float64), torch.tensor(1.0),
    torch.ones(2, dtype=torch.bfloat16), torch.ones(0), torch.zeros(0, 3),
    np.ones(2), np.array(["a", "b"], object), torch.float16, torch.device("cpu"),
    Image.new("RGB", (2, 1)), Image.new("RGB", (1, 2)), Image.new("RGBA", (2, 1)),
    Image.new("L", (2, 1)), palette(0, 0, 0), palette(1, 0, 0), turned(3), turned(6),
    transparent(0), transparent(1),
    scaled, counted, made(1.0), made(2.0), again(1.0), len, max, torch.exp, Plain, Setting,
    lambda logits: logits[0], lambda logits: logits[1], lambda logits, k=1: logits[0],
    lambda logits, k=2: logits[0], lambda logits: logits.max(), lambda logits: logits.min(),
    functools.partial(scaled), functools.partial(scaled, 1), functools.partial(scaled, logits=1),
    Setting(1), Setting((1,)), Setting(scaled), Plain(1), Plain(2), Plain(1).__call__,
    Plain(2).__call__, torch.nn.Linear(2, 2), torch.nn.Linear(2, 2),
]  # fmt: skip


def test_other_values_have_other_fingerprints():
    prints = [fingerprint(value) for value in DIFFERENT]
    double = {p for p in prints if prints.count(p) > 1}
    assert not double, [v for v, p in zip(DIFFERENT, prints, strict=True) if p in double]


@pytest.mark.parametrize(
    "same",
    [
        lambda: (1, "a", [2.5]), lambda: [1, "a", (2.5,)], lambda: {"b": 1, "a": {2, 3}},
        lambda: torch.arange(6).view(2, 3).T, lambda: made(3.0), lambda: Setting({"a": (1,)}),
        lambda: Plain([1]), lambda: np.float64(1.5), lambda: turned(6),
    ],
)  # fmt: skip
def test_equal_values_have_equal_fingerprints(same):
    assert fingerprint(same()) == fingerprint(same())


def test_lists_are_tuples_numbers_of_numpy_are_numbers_and_order_does_not_matter():
    assert fingerprint([1, 2]) == fingerprint((1, 2))
    assert fingerprint(np.int64(3)) == fingerprint(3)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(torch.arange(4)[::2]) == fingerprint(torch.tensor([0, 2]))


def test_functions_know_the_globals_they_read_and_not_those_they_set(monkeypatch):
    before = fingerprint(scaled), fingerprint(indirect)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(scaled) != before[0] and fingerprint(indirect) != before[1]
    before = fingerprint(counted)
    counted(None)
    assert fingerprint(counted) == before


def test_what_holds_itself_ends():
    value = []
    value.append(value)
    assert fingerprint(value) == fingerprint(value) != fingerprint([[]])

    def recursive(n):
        return n and recursive(n - 1)

    assert fingerprint(recursive) == fingerprint(recursive)


def test_a_value_may_say_itself_what_it_is():
    class Says:
        def __init__(self, word, noise):
            self.word, self.noise = word, noise

        def identity(self):
            return self.word

    assert fingerprint(Says("a", 1)) == fingerprint(Says("a", 2)) != fingerprint(Says("b", 1))


def test_other_processes_find_the_same():
    code = (
        "from vlm_lens.storage.fingerprint import fingerprint\n"
        "import torch\n"
        "def f(x, words={'a', 'b', 'c'}):\n"
        "    return x in {'p', 'q', 'r', 's'} and [y for y in words]\n"
        "print(fingerprint(f, {'x', 'y', 'z'}, torch.ones(3), {'k': f}))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**__import__("os").environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(found) == 1
