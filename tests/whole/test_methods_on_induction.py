"""Each method finds on toy-induction exactly what was written into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from induction_case import (
    COPY,
    HEADS,
    HERE,
    NAMES,
    THERE,
    asked,
    chirps,
    drawn,
    full,
    grid_task,
    model,
    token_list,
    top,
)
from torch import Tensor

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    AttentionKnockout,
    HookedVLM,
    Images,
    Last,
    Patches,
    Prompt,
    Steer,
    TaskVector,
)
from vlm_lens.measures import LogitDiff, Prob
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.sweep import Grid, Variant
from vlm_lens.zoo.induction import ANSWER, INDUCTION, PREVIOUS, QUESTION, SCALE, SLOTS


@pytest.fixture
def vlm() -> HookedVLM:
    return model()


@pytest.fixture
def tokens() -> list[str]:
    return token_list()


@pytest.fixture
def prompt() -> Prompt:
    return asked(0)


@pytest.fixture
def donor() -> Prompt:
    """The same question about a picture in which every cell has another color."""
    return asked(1)


POINTS = (
    "vision.hook_embed",
    "vision.blocks.0.hook_resid_mid",
    "vision.hook_out",
    "projector.hook_in",
    "projector.hook_out",
    "hook_merged",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_post",
)


@pytest.mark.parametrize("point", POINTS)
def test_patching_a_patch(vlm, prompt, donor, point: str) -> None:
    plain = vlm.run(prompt)[0, -1]
    _, cache = vlm.run_with_cache(donor, names_filter=[point])
    for number, name in enumerate(NAMES):
        at = Patches(0, rows=number // 4, cols=number % 4)
        logits = vlm.run(prompt, interventions=ActivationPatch(point, at=at, value=cache))
        if name == "b3" and point != "blocks.2.hook_resid_post":
            assert top(vlm, logits) == [THERE]
            assert logits[0, -1].max() == pytest.approx(SCALE, abs=1e-4)
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("point", ["projector.hook_out", "hook_merged", "blocks.1.hook_resid_post"])
def test_attribution_patching(vlm, prompt, donor, point: str) -> None:
    """Gradient times difference is the effect itself: twice 64 at the named patch, 0 elsewhere."""
    logits, cache = vlm.run_with_cache(prompt, names_filter=[point], grad=True)
    there, here = (vlm.to_single_token(word) for word in (THERE, HERE))
    (gradient,) = torch.autograd.grad(logits[0, -1, there] - logits[0, -1, here], cache[point])
    _, other = vlm.run_with_cache(donor, names_filter=[point])
    effect = ((other[point] - cache[point]) * gradient).sum(-1)[0].detach()
    image = prompt.layout.image[0]
    named = image.patch(2, 1) - (image.positions[0] if point.startswith("projector") else 0)
    wanted = torch.zeros_like(effect)
    wanted[named] = 2 * SCALE
    torch.testing.assert_close(effect, wanted, atol=1e-4, rtol=0)
    if point == "projector.hook_out":  # in the text, idle heads look at <s>, which has one too
        assert gradient.norm(dim=-1)[0].nonzero().flatten().tolist() == [named]


def test_sweep_over_layers_and_positions(vlm, prompt, donor) -> None:
    """The last position takes over after the last block; before it, the named patch alone."""
    _, cache = vlm.run_with_cache(donor, names_filter="blocks.*.hook_resid_post")
    positions = range(1, prompt.length)
    variants = [
        ActivationPatch(f"blocks.{layer}.hook_resid_post", at=At((p,)), value=cache)
        for layer in range(3)
        for p in positions
    ]
    swept = vlm.sweep(prompt, variants, measure="top1", progress=False)
    assert set(swept.engines) == {"replay"}
    patch = prompt.layout.image[0].patch(2, 1)
    takes_over = {(0, patch), (1, patch), (2, prompt.layout.last)}
    places = [(layer, p) for layer in range(3) for p in positions]
    for place, record in zip(places, swept.records, strict=True):
        assert record["token"] == (THERE if place in takes_over else HERE), place


@pytest.mark.parametrize(
    ("text", "at", "needed"),
    [
        ("image", Last(), {QUESTION, ANSWER}),
        ("image", All(), {QUESTION, ANSWER}),
        (COPY, Last(), {QUESTION, ANSWER}),
        (COPY, All(), {QUESTION, PREVIOUS, ANSWER}),
        ("x y z q x", Last(), {INDUCTION}),
        ("x y z q x", All(), {PREVIOUS, INDUCTION}),
    ],
)
def test_knocking_out_heads(vlm, prompt, text: str, at, needed: set) -> None:
    asked = prompt if text == "image" else vlm.prompt(text)
    plain = vlm.run(asked)[0, -1]
    for layer, head in HEADS:
        off = Ablate(f"blocks.{layer}.attn.hook_z", at=at, heads=[head])
        logits = vlm.run(asked, interventions=off)
        if (layer, head) in needed:
            assert top(vlm, logits) == ["</s>"]
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


def test_a_grid_of_heads(vlm, prompt) -> None:
    grid = Grid("blocks.*.attn.hook_z", at=Last(), vectors=0.0, heads=range(3))
    swept = vlm.sweep(prompt, grid, progress=False).to_dataframe()
    assert len(swept) == 9 and (swept["token"] == "</s>").sum() == 2


def test_attention_knockout(vlm, prompt) -> None:
    """Of all weights from the last position, one matters: the answer head's at the named patch."""
    layer, head = ANSWER
    plain = vlm.run(prompt)[0, -1]
    for key in range(prompt.length):

        def cut(pattern: Tensor, hook, key: int = key) -> Tensor:
            pattern[0, head, -1, key] = 0
            return pattern

        point = f"blocks.{layer}.attn.hook_pattern"
        logits = vlm.run_with_hooks(prompt, fwd_hooks=[(point, cut)])
        if key == prompt.layout.image[0].patch(2, 1):
            assert top(vlm, logits) == ["</s>"]
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


def test_nothing_else_computes(vlm, prompt) -> None:
    """The language model's MLPs and the tower's attention add nothing at all."""
    names = ["blocks.*.hook_mlp_out", "vision.blocks.*.hook_attn_out"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    assert all(float(cache[name].abs().max()) == 0 for name in cache)


@pytest.mark.parametrize("source", ["Q:c1\nA:", "Q:b3\nA:red\n\nQ:c1\nA:", "image"])
def test_a_vector_brings_the_question_then_the_answer(vlm, prompt, source: str) -> None:
    read = vlm.prompt("Q:<image>c1\nA:", images=[drawn(full(1))]) if source == "image" else source
    vector = TaskVector.read(vlm, [read], at=Last())
    patch = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)
    swept = vlm.sweep(prompt, patch.each_layer(), progress=False)
    answer = full(1)["c1"] if source == "image" else "</s>"
    here = full(0)["c1"]
    assert [r["token"] for r in swept.records] == [here, here, answer]


def test_steering_by_codes(vlm, tokens, prompt) -> None:
    codes = chirps(tokens)

    def turn(slot: str, away: str, to: str) -> Tensor:
        difference = codes[tokens.index(to)] - codes[tokens.index(away)]
        vector = torch.zeros(vlm.cfg.d_model)
        vector[SLOTS[slot]] = torch.tensor(np.r_[difference.real, difference.imag]).float()
        return vector

    for slot, away, to, layer, said in (
        ("NAME", "b3", "c1", 0, full(0)["c1"]),
        ("NAME", "b3", "c1", 1, full(0)["c1"]),
        ("NAME", "b3", "c1", 2, HERE),
        ("OUT", HERE, "white", 2, "white"),
        ("OUT", HERE, "white", 0, "white"),  # added early, it stays: nothing reads OUT
    ):
        edit = Steer(f"blocks.{layer}.hook_resid_post", at=Last(), vector=turn(slot, away, to))
        assert top(vlm, vlm.run(prompt, interventions=edit)) == [said], (slot, layer)


# ---------------------------------------------------------------------- the edge that is known

READS = (2, 2)  # block and head of the one edge from the picture to the answer
CELL = NAMES.index("b3")


def test_attention_finds_the_edge(vlm, prompt) -> None:
    """The head that reads the cell looks at it alone; no other head looks at the picture."""
    look = vlm.attention(prompt)
    patch = prompt.layout.image[0].patch(*divmod(CELL, 4))
    at_cell = look.sel(position=patch).values
    assert float(at_cell.sel(layer=READS[0], head=READS[1])) > 0.999
    others = [float(at_cell.sel(layer=n, head=h)) for n, h in HEADS if (n, h) != READS]
    assert max(others) < 1e-3
    best = look.of_kind("image").top(1).iloc[0]
    assert (best["layer"], best["head"], best["patch"]) == (*READS, divmod(CELL, 4))


def test_knockout_finds_the_edge(vlm, prompt) -> None:
    """Of all edges from a patch to the last position, in all heads, the answer needs one."""
    edits = [
        Variant(
            AttentionKnockout(
                Last(), Patches(0, rows=n // 4, cols=n % 4), layers=layer, heads=head
            ),
            {"layer": layer, "head": head, "at": name},
        )
        for layer, head in HEADS
        for n, name in enumerate(NAMES)
    ]
    swept = vlm.sweep(prompt, edits, measure=Prob(HERE), progress=False)
    assert swept.engines == {"replay": len(edits)}
    for record in swept.records:
        needed = (record["layer"], record["head"], record["at"]) == (*READS, "b3")
        assert record["prob"] == pytest.approx(0.0 if needed else 1.0, abs=1e-6), record


def test_a_patch_sweep_finds_the_edge(vlm, prompt, donor) -> None:
    """Of all patches of another picture, one brings its answer; blocks after the edge read none."""
    points = ["hook_merged", *(f"blocks.{n}.hook_resid_post" for n in range(3))]
    _, cache = vlm.run_with_cache(donor, names_filter=points)
    patches = prompt.layout.image[0].positions
    for point in points:
        grid = Grid(point, at=list(patches), vectors=cache)
        found = vlm.sweep(prompt, grid, measure=LogitDiff(THERE, HERE), progress=False).scores()
        plain = found.about["without intervention"]
        change = np.array(found.values).reshape(-1) - plain
        moved = np.flatnonzero(np.abs(change) > 1e-3)
        assert moved.tolist() == ([] if point == "blocks.2.hook_resid_post" else [CELL]), point
        if moved.size:
            assert change[CELL] == pytest.approx(-2 * plain, rel=1e-3)  # the answers change places
            assert found.top(1)["patch"].iloc[0] == divmod(CELL, 4)


def test_on_grid_pictures_the_right_patch_is_looked_at_and_needed(vlm) -> None:
    """Twenty drawn pictures: largest share at the right patch, no answer without that edge."""
    task, right, looked, needed, kept = grid_task(), 0, 0, 0, 0
    for row in task.test[:20]:
        made = task.query(row, "image")
        raw = RawPrompt(made.text.replace("<image>", "<image>" + row.input[:2]), made.images)
        prompt = vlm.prompt(raw)
        answer = vlm.to_single_token(row.output)
        right += int(vlm.run(prompt)[0, -1].argmax()) == answer
        (true,) = row.patches(prompt.layout)
        found = vlm.attention(prompt, layers=READS[0], heads=READS[1]).of_kind("image")
        looked += int(found.top(1)["position"].iloc[0]) == true
        edits = [
            AttentionKnockout(Last(), true, layers=READS[0]),
            AttentionKnockout(Last(), Images() - At((true,)), layers=READS[0]),
        ]
        swept = vlm.sweep(prompt, edits, measure=Prob(row.output), progress=False)
        gone, others_gone = (record["prob"] for record in swept.records)
        needed += gone < 1e-6
        kept += others_gone > 0.999
    assert (right, looked, needed, kept) == (20, 20, 20, 20)
