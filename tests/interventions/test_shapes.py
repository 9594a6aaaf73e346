"""Which shapes of values mean what, and which are refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from typecheck import unchecked

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    Clamp,
    HookedVLM,
    Last,
    Scale,
    Steer,
    Text,
)
from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import freeze_heads

P = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"


@pytest.fixture
def batch(clip):
    return clip.prompt(["Q:Greece\nA:", "Q:Peru\nA:", "Q:France\nA:"])


def after(vlm, prompt, edit, name=P):
    return vlm.run_with_cache(prompt, names_filter=name, interventions=edit)[1][name]


@pytest.mark.parametrize(
    ("at", "shape"),
    [
        (Last(), ()), (Last(), (1,)), (Last(), (32,)), (Last(), (1, 32)), (Last(), (3, 32)),
        (Last(), (3, 1, 32)), (At((-1, -2)), (32,)), (At((-1, -2)), (2, 32)),
        (At((-1, -2)), (3, 2, 32)), (At((-1, -2)), (2, 1)), (All(), (1, 32)),
    ],
)  # fmt: skip
def test_shapes_mean_what_they_say(clip, batch, at, shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = after(clip, batch, ActivationPatch(P, at=at, value=value))
    plain = after(clip, batch, None)
    for row, layout in enumerate(batch.layouts):
        places = [p for _, p in at.resolve(layout)]
        for number, position in enumerate(places):
            new = value
            if value.dim() == 3:
                new = value[row, number]
            elif value.dim() == 2 and len(value) > 1:
                new = value[number] if len(places) > 1 else value[row]
            assert torch.equal(made[row, position], new.expand(1, 32)[0])
        others = [p for p in range(batch.length) if p not in places]
        assert torch.equal(made[row, others], plain[row, others])


@pytest.mark.parametrize("shape", [(31,), (2, 32), (3, 2, 32), (2, 1, 32), (1, 1, 1, 32)])
def test_shapes_that_fit_nothing(clip, batch, no_forward, shape):
    no_forward(clip)
    with pytest.raises(
        InterventionError, match=r"does not fit blocks.1.hook_resid_post: it takes a number, \[32\]"
    ):
        clip.run(batch, interventions=ActivationPatch(P, at=Last(), value=torch.zeros(shape)))


@pytest.mark.parametrize(
    "make", [ActivationPatch, Steer, lambda p, a, v, heads: Ablate(p, a, v, heads)]
)
@pytest.mark.parametrize(
    ("heads", "shape"),
    [((1,), (8,)), ((1, 3), (8,)), ((1, 3), (2, 8)), ((1, 3), (4, 8)), (None, (4, 8)), (None, (8,)),
     ((3,), (3, 1, 4, 8)), ((0, 2), (1, 8))],
)  # fmt: skip
def test_shapes_with_heads(clip, batch, make, heads, shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = after(clip, batch, make(Z, Last(), value, heads=heads), Z)
    plain = after(clip, batch, None, Z)
    chosen = heads or (0, 1, 2, 3)
    for row in range(3):
        for number, head in enumerate(chosen):
            one = value[row, 0] if value.dim() == 4 else value
            if one.dim() == 2:
                one = one[head if len(one) == 4 else number if len(one) > 1 else 0]
            expected = plain[row, -1, head] + one if make is Steer else one
            assert torch.equal(made[row, -1, head], expected)
        rest = [h for h in range(4) if h not in chosen]
        assert torch.equal(made[row, -1, rest], plain[row, -1, rest])
    assert torch.equal(made[:, :-1], plain[:, :-1])


@pytest.mark.parametrize("heads", [None, 0, (1, 3)])
def test_two_axes_at_heads_are_heads_and_features(clip, heads):
    """Also where there are as many positions as heads: nothing is guessed from sizes."""
    prompt, at = clip.prompt("Q:Greece\nA: Peru"), At((0, 1, 2, 3))
    value = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    chosen = [0, 1, 2, 3] if heads is None else [heads] if heads == 0 else list(heads)
    made = after(clip, prompt, ActivationPatch(Z, at, value, heads=heads), Z)[0, :4, chosen]
    assert torch.equal(made, value[chosen].expand(4, -1, -1))
    each = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(1))
    made = after(clip, prompt, ActivationPatch(Z, at, each, heads=heads), Z)[0, :4, chosen]
    assert torch.equal(made, each.expand(-1, len(chosen), -1))
    with pytest.raises(InterventionError, match=r"\[3, 8\] does not fit .* it takes a number, \["):
        clip.run(prompt, interventions=ActivationPatch(Z, at, value[:3], heads=heads))


def test_rows_with_different_numbers_of_places(clip):
    batch = clip.prompt(["Q:Greece\nA:", "Q:What is the capital\nA:"])
    counts = [len(Text().resolve(layout)) for layout in batch.layouts]
    assert counts[0] != counts[1]
    value = torch.randn(sum(counts), 32, generator=torch.Generator().manual_seed(0))
    made = after(clip, batch, ActivationPatch(P, Text(), value))
    places = [p for layout in batch.layouts for p in Text().resolve(layout)]
    assert torch.equal(torch.stack([made[r, p] for r, p in places]), value)
    with pytest.raises(InterventionError, match=rf"\[{sum(counts)}, 32\] for all places"):
        clip.run(batch, interventions=ActivationPatch(P, Text(), value[: counts[0]]))


@pytest.mark.parametrize(
    ("value", "says"),
    [(torch.zeros(0), "holds no numbers"), (torch.zeros(2, dtype=torch.complex64), "complex"),
     ("zero", "not str"), ([1.0], "not list")],
)  # fmt: skip
def test_what_is_no_value(value, says):
    for make in (ActivationPatch, Steer):
        with pytest.raises(InterventionError, match=says):
            make(P, Last(), value)


def test_values_that_hold_nan_are_refused(clip, batch, no_forward):
    _, cache = clip.run_with_cache(batch, names_filter=P)
    cache[P][0, -1, 3] = float("nan")
    no_forward(clip)
    for value in (cache, float("nan"), torch.full((32,), float("nan"))):
        with pytest.raises(InterventionError, match="holds NaN"):
            clip.run(batch, interventions=ActivationPatch(P, Last(), value))


def test_values_that_half_precision_does_not_hold_are_refused():
    vlm = HookedVLM(tiny.build("llama").to(torch.float16), tiny.reader("llama"))
    prompt, wide = vlm.prompt("Q:Peru\nA:"), torch.full((vlm.cfg.d_model,), 1e5)
    for edit in (
        ActivationPatch(P, Last(), wide),
        Steer(P, Last(), wide / 2, scale=4.0),
        Scale(P, Last(), -1e6),
    ):
        with pytest.raises(InterventionError, match="float16, up to 65504"):
            vlm.run(prompt, interventions=edit)
        with pytest.raises(InterventionError, match="bfloat16 or float32"):
            vlm.sweep(prompt, [edit], progress=False)
    assert vlm.run(prompt, interventions=ActivationPatch(P, Last(), wide / 2)).isfinite().all()
    assert vlm.run(prompt, interventions=Clamp(P, Last(), high=1e6)).isfinite().all()
    vlm.hf_model.to(torch.bfloat16)
    assert vlm.run(prompt, interventions=ActivationPatch(P, Last(), wide)).isfinite().all()


def test_scales_and_heads_that_are_none(clip):
    for scale in (float("nan"), float("inf")):
        with pytest.raises(InterventionError, match="give a finite number"):
            Steer(P, Last(), 1.0, scale=scale)
    for heads in ([], (1, 1), "0", 1.5):
        with pytest.raises(InterventionError, match="head"):
            unchecked(freeze_heads)(heads)
    import numpy as np

    assert Ablate(Z, Last(), heads=np.int64(2)) == Ablate(Z, Last(), heads=2)
    assert Ablate(Z, Last(), heads=np.arange(2)) == Ablate(Z, Last(), heads=(0, 1))


def test_points_that_select_nothing(clip, no_forward):
    from vlm_lens.errors import PointError

    no_forward(clip)
    with pytest.raises(PointError, match="counts down; write {0..1}"):
        clip.run("Q:", interventions=Ablate("blocks.{1..0}.hook_resid_post", Last()))
    with pytest.raises(PointError, match="empty list"):
        clip.run_with_hooks("Q:", fwd_hooks=[([], lambda x, hook: None)])
    with pytest.raises(PointError, match="empty list"):
        clip.run_with_cache("Q:", names_filter=[])
