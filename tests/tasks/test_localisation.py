"""Scores of patches against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_lens import Ablate, At, HookedVLM
from vlm_lens.tasks import Task, TaskError, localise
from vlm_lens.zoo.induction import ANSWER


def test_mass_rank_and_chance_by_hand() -> None:
    found = localise([1, -4, 3, 2], [10, 11, 12, 13], [13, 12])
    assert (found.mass, found.rank, found.chance, found.hit) == (0.5, 1, 0.5, False)
    assert localise(torch.tensor([0.0, 2.0, 1.0]), (5, 6, 7), {6}).hit
    same = localise(np.ones(8), range(8), [2])
    assert (same.mass, same.rank, same.chance) == (1 / 8, 0, 1 / 8)


@pytest.mark.parametrize(
    ("scores", "true", "message"),
    [
        ([1.0, 2.0], [3], r"scores has shape \[2\]; give one for each of 3"),
        ([1.0, float("nan"), 2.0], [3], "not finite"),
        ([1.0, 1.0, 2.0], [9], "not all among the positions"),
        ([1.0, 1.0, 2.0], [], "not all among the positions"),
        ([0.0, 0.0, 0.0], [3], "point nowhere"),
    ],
)
def test_errors(scores: list[float], true: list[int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        localise(scores, [3, 4, 5], true)


def test_attention_of_the_answer_head_points_at_the_patch() -> None:
    """On toy-induction the answer head looks at the true patch alone, and an idle head nowhere."""
    vlm, task = HookedVLM.from_pretrained("toy-induction"), Task.load("grid-color")
    layer, head = ANSWER
    for row in task.test[:5]:
        prompt = vlm.prompt(task.query(row, "image"))
        _, cache = vlm.run_with_cache(prompt, names_filter=f"blocks.{layer}.attn.hook_pattern")
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1]
        positions = list(prompt.layout.image[0].positions)
        found = localise(pattern[head, positions], positions, row.patches(prompt.layout))
        assert found.hit and found.mass == pytest.approx(1, abs=1e-6)
        assert found.chance == 1 / 16


@pytest.mark.parametrize("named", [True, False])
def test_ablating_patches_points_at_the_patch(named: bool) -> None:
    """If the question does not name the cell, its name is read off the last patch: that counts."""
    vlm, task = HookedVLM.from_pretrained("toy-induction"), Task.load("grid-color")
    for row in task.test[5:8]:
        cell = Task.load("grid-position")[row.input].output if named else ""
        prompt = vlm.prompt(f"Q:<image>{cell}\nA:", images=[row.image])
        positions = prompt.layout.image[0].positions
        swept = vlm.sweep(
            prompt, [Ablate("hook_merged", At((p,))) for p in positions],
            measure=[row.output], progress=False,
        )  # fmt: skip
        name = f"logit({row.output!r})"
        effects = swept.baseline[0][name] - swept.stack(name)
        matters = {*row.patches(prompt.layout), *(() if named else positions[-1:])}
        found = localise(effects, positions, matters)
        assert found.hit and found.mass == pytest.approx(1, abs=1e-3)
        assert found.chance == len(matters) / 16
