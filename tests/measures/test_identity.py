from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

from vlm_lens import Last
from vlm_lens.measures import (
    KL,
    AnswerProb,
    AnyOf,
    Capture,
    Custom,
    GeneratedTokens,
    LogitDiff,
    Logits,
    LogProb,
    Prob,
    Rank,
    TokenScores,
    Top1,
)


def scaled(factor):
    return lambda logits: logits[0] * factor


def first(logits):
    return logits[0]


def shifted(logits, by=1):
    return logits[0] + by


def test_different_measures_have_different_identities():
    measures = [
        Top1(), Logits(), Logits(2), TokenScores((1,)), TokenScores(("1",)), GeneratedTokens(1),
        GeneratedTokens(2), Capture("hook_embed", Last()), Capture("hook_embed", -2), Prob("a"),
        Prob(" a"), Prob(("a", " a")), Prob(AnyOf("a", " a")), LogProb("a"), Rank("a"),
        LogitDiff("a", "b"), LogitDiff("b", "a"), KL(), KL(torch.zeros(3)), KL(torch.ones(3)),
        AnswerProb("a"), AnswerProb("a", normalize=False), Custom(first), Custom(shifted),
        Custom(scaled(2)), Custom(scaled(3)), Custom(partial(shifted, by=2)),
        Custom(partial(shifted, by=3)), Custom(lambda x: x[0]), Custom(lambda x: x[1]),
    ]  # fmt: skip
    identities = [m.identity() for m in measures]
    assert len(set(identities)) == len(measures)
    assert not any(" at 0x" in identity for identity in identities)


def test_equal_measures_have_one_identity():
    for make in (
        lambda: Custom(scaled(2)),
        lambda: KL(torch.arange(4.0)),
        lambda: Prob([" a", 3]),
        lambda: Custom(partial(shifted, by=torch.ones(2))),
    ):
        assert make().identity() == make().identity()


@pytest.mark.slow
def test_the_identity_of_a_function_is_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def make(k):\n    return lambda x: {'a': x[k], 'b': {1, 2, 'c'}}\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mine\n"
        "from vlm_lens.measures import Custom\n"
        "print([Custom(mine.make(k)).identity() for k in (1, 1, 2)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    space: dict = {}
    exec(code.replace("print(", "found = ("), space)  # noqa: S102
    assert run.stdout.strip() == str(space["found"])
    assert space["found"][0] == space["found"][1] != space["found"][2]
