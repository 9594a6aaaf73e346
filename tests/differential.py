"""Random prompts and interventions, for comparing a replay with full forward passes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import tiny
import torch

from vlm_lens import (
    Ablate,
    ActivationPatch,
    AttentionKnockout,
    Clamp,
    Find,
    HookedVLM,
    Images,
    Last,
    Remove,
    Scale,
    Steer,
    Text,
)
from vlm_lens.interventions import Intervention
from vlm_lens.layout.positions import All, At, Patches
from vlm_lens.measures import Capture
from vlm_lens.points.point import Point

TEXTS = ("Q:Greece\nA:", "What is the capital of the country?", "Q:Peru\nA:Lima\n\nQ:Japan\nA:")


def random_prompt(vlm: HookedVLM, source: random.Random, *, pictures: bool, least: int = 0) -> Any:
    """One or two rows with 0, 1 or 3 pictures (`least` at the least), padded where they differ."""
    rows, images = [], []
    for _ in range(source.choice((1, 1, 2))):
        n = max(source.choice((0, 1, 1, 3)), least) if pictures else 0
        rows.append("<image>\n" * n + source.choice(TEXTS))
        images.append([tiny.noise_picture(source.randrange(50), (40, 36)) for _ in range(n)])
    if not any(images):
        return vlm.prompt(rows)
    return vlm.prompt(rows, images)


def random_intervention(
    vlm: HookedVLM, prompt: Any, source: random.Random, *, tower: bool = False
) -> Intervention:
    """One to three changes of the language model, of every kind; before it too, with `tower`."""
    made = (_one_before if tower else _one)(vlm, prompt, source)
    for _ in range(source.choice((0, 0, 1, 2))):
        before = tower and source.random() < 0.5
        made = made + (_one_before if before else _one)(vlm, prompt, source)
    return made


def _one_before(vlm: HookedVLM, prompt: Any, source: random.Random) -> Intervention:
    """One change at tower or projector, in one picture or in all."""
    point = source.choice([p for p in vlm.points().values() if p.space != "text" and p.writable])
    shown = [len(layout.images) for layout in prompt.layouts if layout.images]
    places = [Images()]
    if len(shown) == len(prompt.layouts):
        picture = source.randrange(min(shown))
        places = [Images(), Images(picture)]
        spaces = [layout.image[picture].space(point.space) for layout in prompt.layouts]
        if all(space.grids for space in spaces):
            places += [Patches(picture, rows=0), Patches(picture, rows=0, cols=0)]
        places += [At((0,))] if all(s.sequences for s in spaces) else []
    return _change(point, source.choice(places), source)


def _one(vlm: HookedVLM, prompt: Any, source: random.Random) -> Intervention:
    point = source.choice([p for p in vlm.points().values() if p.space == "text" and p.writable
                           and p.name != "hook_embed"
                           and (any(prompt.images) or not p.needs_pictures)])  # fmt: skip
    places = [
        Last(),
        Find(":", -1) if ":" in _text(prompt) else Last(),
        Text(),
        All(),
        At((-1, -2)),
        At((-source.randint(1, min(map(_n_tokens, prompt.layouts))),)),
    ]
    if all(layout.images for layout in prompt.layouts):
        places += [Images(0)]
        if prompt.layouts[0].image[0].grid is not None:
            places += [Patches(0, rows=(0, 1)), Patches(0, cols=(0, 1))]
            grids = [layout.image[0].grid for layout in prompt.layouts]
            # the last patch: where pictures are read both ways, a change there reaches back
            if all(g is not None for g in grids):
                row, col = (min(getattr(g, n) for g in grids) - 1 for n in ("rows", "cols"))
                places += [Patches(0, rows=row, cols=col)]
    return _change(point, source.choice(places), source)


def _change(point: Point, at: Any, source: random.Random) -> Intervention:
    """A change of any kind at a point."""
    heads = None
    if point.has_heads and source.random() < 0.5:
        heads = [source.randrange(point.sizes[point.axes.index("head")])]
    own = point.name.startswith(("blocks.", "vision.blocks.")) and not point.pictures_only
    if point.name.endswith("scores") and own and source.random() < 0.5:
        if point.space == "text":
            return AttentionKnockout(Last(), ~Last(), point.layer, heads)
        return AttentionKnockout(Images(), At((0,)), point.layer, heads, "vision")
    if point.on_demand:
        return Ablate(point.name, at, "zero", heads=heads)
    kind = source.choice(("set", "add", "zero", "mean", "scale", "remove", "clamp"))
    if kind == "mean":
        kind = "prompt_mean" if point.space == "text" else "picture_mean"
    vector = torch.randn(
        point.sizes[-1], generator=torch.Generator().manual_seed(source.randrange(99))
    )
    if kind == "scale":
        return Scale(point.name, at, source.choice((0.5, -1.0, 2.0)), heads=heads)
    if kind == "remove":
        return Remove(point.name, at, vector, heads=heads)
    if kind == "clamp":
        return Clamp(point.name, at, -0.3, 0.2, heads=heads)
    if kind == "set":
        return ActivationPatch(point.name, at, vector, heads=heads)
    if kind == "add":
        return Steer(point.name, at, vector, source.choice((0.5, -1.0, 3.0)), heads=heads)
    return Ablate(point.name, at, kind, heads=heads)


def _n_tokens(layout: Any) -> int:
    return len(layout) - layout.start


def _text(prompt: Any) -> str:
    return min(prompt.texts, key=lambda t: t.count(":"))


def assert_same(replayed: torch.Tensor, full: torch.Tensor) -> None:
    """Same arg-max and logits within 1e-4 of their scale, in float32."""
    assert not full.isnan().any()
    usual = full.abs() < 1e30  # some models bar tokens by the lowest number there is
    assert torch.equal(replayed[~usual], full[~usual])
    full, replayed = (x.where(usual, 0) for x in (full, replayed))
    scale = full.abs().amax(-1, keepdim=True)
    assert ((replayed - full).abs() <= 1e-4 * scale).all(), float(
        ((replayed - full).abs() / scale).max()
    )
    top = full.topk(2, -1)
    clear = (top.values[..., 0] - top.values[..., 1]) > 1e-4 * scale[..., 0]
    assert torch.equal(replayed.argmax(-1)[clear], full.argmax(-1)[clear])


def compare(
    vlm: HookedVLM,
    seed: int,
    *,
    pictures: bool,
    n_variants: int = 8,
    least: int = 0,
    tower: bool = False,
) -> int:
    """Replays random variants and computes them in full; returns how many were replayed.

    With `tower`, every row shows a picture and every variant acts on tower or projector too.
    """
    source = random.Random(seed)
    prompt = random_prompt(vlm, source, pictures=pictures, least=max(least, tower))
    variants = [random_intervention(vlm, prompt, source, tower=tower) for _ in range(n_variants)]
    options = {"measure": "logits", "progress": False}
    replayed = vlm.sweep(prompt, variants, memory=source.choice((1, 10**6, None)), **options)
    full = vlm.sweep(prompt, variants, engine="full", **options)
    assert_same(replayed.stack("logits"), full.stack("logits"))
    return replayed.engines.get("replay", 0)


def captured(vlm: HookedVLM, prompt: Any, variants: Any, names: Any, at: Any) -> Iterator[Any]:
    """What a replay captures under variants, and what runs in full do, for each record."""
    for engine in ("replay", "full"):
        result = vlm.sweep(
            prompt, variants, measure=Capture(names, at), engine=engine, progress=False
        )
        assert engine == "full" or result.engines == {engine: len(variants)}
        yield result


def assert_captured_alike(replayed: Any, full: Any) -> None:
    """Same activations within 1e-4 of the scale of each, in the plain run too."""
    columns = [c for c in full.columns if isinstance(full.records[0][c], torch.Tensor)]
    assert columns and replayed.columns == full.columns
    for pair in zip(
        [*replayed.records, *replayed.baseline], [*full.records, *full.baseline], strict=True
    ):
        for name in columns:
            one, two = (record[name] for record in pair)
            usual = two.abs() < 1e30
            scale = two[usual].abs().max()
            assert torch.equal(one[~usual], two[~usual])
            assert ((one - two)[usual].abs() <= 1e-4 * scale).all(), name


def value_points(vlm: HookedVLM) -> list[Point]:
    """The points of the language model that may be written."""
    return [p for p in vlm.points().values() if p.space == "text" and p.writable]


def assert_close_records(found: Sequence[Mapping], expected: Sequence[Mapping]) -> None:
    """Records of two computations: floats within rounding, everything else equal.

    How rows share a batch decides which kernel multiplies them, and the last bits with it, so exact
    equality holds for one computation only, not for the same sweep in other chunks.
    """
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for key, value in other.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-4, abs=1e-5)
            assert one[key] == value, key
