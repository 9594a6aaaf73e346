"""Random prompts and interventions, for comparing a replay with full forward passes."""

from __future__ import annotations

import random
from typing import Any

import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, Find, HookedVLM, Images, Last, Steer, Text
from vlm_lens.interventions import Intervention
from vlm_lens.points import Point
from vlm_lens.positions import All, At, Patches

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


def random_intervention(vlm: HookedVLM, prompt: Any, source: random.Random) -> Intervention:
    """One to three changes of the language model, of every kind."""
    made = _one(vlm, prompt, source)
    for _ in range(source.choice((0, 0, 1, 2))):
        made = made + _one(vlm, prompt, source)
    return made


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
    at = source.choice(places)
    heads = None
    if point.has_heads and source.random() < 0.5:
        heads = [source.randrange(point.sizes[point.axes.index("head")])]
    if point.on_demand:
        return Ablate(point.name, at, "zero", heads=heads)
    kind = source.choice(("set", "add", "zero", "mean"))
    vector = torch.randn(
        point.sizes[-1], generator=torch.Generator().manual_seed(source.randrange(99))
    )
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
    vlm: HookedVLM, seed: int, *, pictures: bool, n_variants: int = 8, least: int = 0
) -> int:
    """Replays random variants and computes them in full; returns how many were replayed."""
    source = random.Random(seed)
    prompt = random_prompt(vlm, source, pictures=pictures, least=least)
    variants = [random_intervention(vlm, prompt, source) for _ in range(n_variants)]
    options = {"measure": "logits", "progress": False}
    replayed = vlm.sweep(prompt, variants, memory=source.choice((1, 10**6, None)), **options)
    full = vlm.sweep(prompt, variants, engine="full", **options)
    assert_same(replayed.stack("logits"), full.stack("logits"))
    return replayed.engines.get("replay", 0)


def value_points(vlm: HookedVLM) -> list[Point]:
    """The points of the language model that may be written."""
    return [p for p in vlm.points().values() if p.space == "text" and p.writable]
