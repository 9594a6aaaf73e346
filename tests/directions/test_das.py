"""Distributed alignment search finds what is planted, and nothing where nothing is."""

from __future__ import annotations

import random

import pytest
import torch

from vlm_lens import HookedVLM, Last
from vlm_lens.directions import Counterfactual, Subspace, das
from vlm_lens.errors import VectorError
from vlm_lens.tasks import Task
from vlm_lens.zoo.induction import SLOTS

COLORS = ("red", "green", "blue", "yellow", "cyan")
CELLS = [f"{column}{row}" for row in "1234" for column in "abcd"]


def colours(n: int) -> list[Counterfactual]:
    """A question about a cell, to be answered with what the source is answered."""
    draw = random.Random(1)

    def asked() -> tuple[str, str]:
        name, color = draw.choice(CELLS), draw.choice(COLORS)
        return f"Q:{name}\nA:{color}\n\nQ:{name}\nA:", color

    made = []
    for _ in range(n):
        (base, _), (source, answer) = asked(), asked()
        made.append(Counterfactual(base, source, answer))
    return made


@pytest.mark.slow
def test_finds_the_coordinate_that_is_written_down():
    vlm = HookedVLM.from_pretrained("toy-induction")
    found = das(vlm, colours(80), "blocks.2.hook_resid_post", k=4, steps=60, lr=0.1,
                progress=False)  # fmt: skip
    table = found.table.accuracy
    assert found.accuracy > 0.9
    assert table["whole space"] == 1.0
    assert max(table["random subspace"], table["no interchange"]) < found.chance + 0.1
    assert table["arbitrary labels"] < found.chance + 0.2
    assert table["re-initialised model"] < found.chance + 0.1
    eye = torch.eye(288)
    overlap = {name: found.subspace.overlap(eye[slot]) for name, slot in SLOTS.items()}
    by_chance = 46 / 288
    assert overlap["OUT"] > 4 * by_chance
    assert overlap["NAME"] < by_chance  # differs between base and source as much, and is not read


def test_the_subspace_is_a_value(clip, tmp_path):
    pairs = [Counterfactual(f"Q:{a}\nA:", f"Q:{b}\nA:", 5 + i % 3) for i, (a, b) in
             enumerate(zip("abcdefgh", "hgfedcba", strict=True))]  # fmt: skip
    found = das(clip, pairs, "blocks.0.hook_resid_post", k=2, steps=3, controls=False,
                progress=False)  # fmt: skip
    assert all(weight.grad is None for weight in clip.hf_model.parameters())
    basis = found.subspace.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-5, rtol=0)
    again = Subspace.load(found.subspace.save(tmp_path / "subspace"))
    assert again == found.subspace
    _, cache = clip.run_with_cache("Q:z\nA:", names_filter="blocks.0.hook_resid_post")
    edit = again.interchange(cache)
    assert edit.at == Last()
    clip.run("Q:a\nA:", interventions=edit)
    assert found.subspace.overlap(basis) == pytest.approx(1.0, abs=1e-5)
    repeated = das(clip, pairs, "blocks.0.hook_resid_post", k=2, steps=3, controls=False,
                   progress=False)  # fmt: skip
    torch.testing.assert_close(repeated.subspace.basis, basis)


@pytest.mark.slow
def test_finds_the_task_of_an_organism():
    """The task that was planted after block 4 of toy-llava, and none in fresh weights."""
    vlm, draw = HookedVLM.from_pretrained("toy-llava"), random.Random(0)
    tasks = [Task.load("animal-young"), Task.load("animal-latin")]
    pairs = []
    for i in range(60):
        name, task = draw.choice(tasks[0].test).input, draw.choice(tasks)
        source = task.examples(3, "text", seed=i)
        pairs.append(Counterfactual(task.query(name, "text"), source, task[name].answers[0], name))
    found = das(vlm, pairs, "blocks.4.hook_resid_post", k=4, steps=60, lr=0.1, progress=False)
    table = found.table.accuracy
    assert table["whole space"] > 0.95
    assert found.accuracy > max(table["random subspace"], table["no interchange"]) + 0.5
    assert found.accuracy > table["arbitrary labels"] + 0.5
    assert found.accuracy > table["re-initialised model"] + 0.5


def test_the_commonest_answer_is_counted_by_token(clip):
    b = clip.to_first_token("b")
    pairs = [
        Counterfactual(f"Q:{i}{group}", "Q:b", answer, group=group)
        for group in "xy" for i, answer in enumerate((b, "b", "b", "c"))
    ]  # fmt: skip
    found = das(clip, pairs, "blocks.0.hook_resid_post", steps=1, holdout=0.5, controls=False,
                progress=False)  # fmt: skip
    assert found.about["held out"] == 4 and found.chance == 0.75


def test_what_cannot_be_searched_is_refused(clip):
    pairs = [Counterfactual("Q:a", "Q:b", 5), Counterfactual("Q:c", "Q:d", 6)]
    with pytest.raises(VectorError, match="between 1 and 32"):
        das(clip, pairs, "blocks.0.hook_resid_post", k=33)
    with pytest.raises(VectorError, match="no subspace"):
        das(clip, pairs, "blocks.0.attn.hook_z")
    with pytest.raises(VectorError, match="cannot be split"):
        das(clip, pairs[:1], "blocks.0.hook_resid_post")
    with pytest.raises(VectorError, match="holdout"):
        das(clip, pairs, "blocks.0.hook_resid_post", holdout=1)
