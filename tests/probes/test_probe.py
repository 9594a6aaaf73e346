"""Probes: entities held out, a control at chance, and the leak of a split by prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from vlm_lens import HookedVLM, Last
from vlm_lens.probes import ProbeError, ProbeSet, probe
from vlm_lens.tasks import Task

LETTERS = "abcdefghijklmnopqrst"


@pytest.fixture(scope="module")
def letters() -> ProbeSet:
    """Each letter in six prompts, with a label that has nothing to do with it."""
    rows = [(f"Q:{letter}{x}\nA:", LETTERS.index(letter) % 2, letter)
            for letter in LETTERS for x in "uvwxyz"]  # fmt: skip
    prompts, labels, entities = zip(*rows, strict=True)
    return ProbeSet(prompts, labels, entities, "letters")


def test_a_split_by_prompt_leaks_the_entity(clip, letters):
    at = {"letter": 2}
    leaky = probe(clip, letters, at=at, points="blocks.0.hook_resid_post", split="prompt",
                  controls=2)  # fmt: skip
    held = probe(clip, letters, at=at, points="blocks.0.hook_resid_post", controls=4)
    assert float(leaky.accuracy.values.squeeze()) > 0.95
    assert float(leaky.control.values.squeeze()) > 0.95  # so it says nothing
    assert abs(float(leaky.selectivity.values.squeeze())) < 0.05
    assert float(held.accuracy.values.squeeze()) < 0.75
    assert 0.3 < float(held.control.values.squeeze()) < 0.7


def test_equals_scikit_learn_on_plain_hidden_states(clip, letters):
    found = probe(clip, letters, at={"last": Last()}, controls=1, folds=4, seed=3)
    states = []
    for text in letters.prompts:
        inputs = clip.prompt(text).inputs
        with torch.no_grad():
            hidden = clip.hf_model(**inputs, output_hidden_states=True).hidden_states
        states.append(hidden[1][0, -1].numpy())
    x, y = np.stack(states), np.array(letters.labels)
    cut = StratifiedGroupKFold(4, shuffle=True, random_state=3)
    right = 0
    for train, test in cut.split(x, y, groups=np.array(letters.entities)):
        scale = StandardScaler().fit(x[train])
        model = LogisticRegression(max_iter=300).fit(scale.transform(x[train]), y[train])
        right += (model.predict(scale.transform(x[test])) == y[test]).sum()
    assert float(found.accuracy.values.sel(layer=0, kind="last")) == pytest.approx(
        right / len(y), abs=0.02
    )


@pytest.mark.slow
def test_what_an_organism_knows_and_the_control_does_not():
    vlm = HookedVLM.from_pretrained("toy-llava")
    animals = [(Task.load("animal-class").query(row, "image"), row.answers[0], row.input)
               for row in Task.load("animal-class")
               if row.image is not None and row.answers[0] in ("mammal", "bird")]  # fmt: skip
    foods = [(Task.load("food-kind").query(row, "image"), "food", row.input)
             for row in list(Task.load("food-kind"))[:30] if row.image is not None]  # fmt: skip
    found = probe(vlm, animals + foods, points="blocks.{0,4}.hook_resid_post", folds=3)
    table = found.to_dataframe()
    assert list(found.accuracy.values["kind"].to_numpy()) == ["image", "last"]
    best = table[table.kind == "image"]
    assert (best.accuracy > best.majority + 0.1).all()
    assert (table.control < table.majority + 0.05).all()  # chance: no better than one answer
    assert (best.selectivity > 0.15).all()
    last = table[table.kind == "last"]
    assert (last.text_only <= last.majority + 0.01).all()  # the text alone says nothing
    assert len(found.plot().data) == 6
    assert "selectivity" in repr(found)


def test_what_makes_no_probe_is_refused(clip, letters):
    with pytest.raises(ProbeError, match="fewer than the 11 folds"):
        probe(clip, letters, folds=11)
    with pytest.raises(ProbeError, match="split is"):
        probe(clip, letters, split="picture")
    with pytest.raises(ProbeError, match="rows of"):
        probe(clip, [("a", "b")])
