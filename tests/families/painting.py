"""Geometry by experiment: paint one patch's box of pixels and see which position changes."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from vlm_lens import HookedVLM
from vlm_lens.testing import conformance


def check_conforms(vlm: HookedVLM, text, pictures=(), *, cold: bool = False) -> None:
    """The conformance suite passes."""
    report = conformance(vlm, vlm.prompt(text, list(pictures)), cold=cold)
    assert report.passed, str(report)


def check_conforms_geometry(vlm: HookedVLM, prompt) -> None:
    """Patches are found again by their pixels, and the model runs as Hugging Face's."""
    only = ("forward equals Hugging Face", "patch -> pixels -> patch")
    report = conformance(vlm, prompt, only=only)
    assert [r.outcome for r in report.results] == ["passed"] * 2, str(report)


def painted(picture: Image.Image, box, seed: int = 5) -> Image.Image:
    """The picture with a box of pixels inverted."""
    x0, y0, x1, y1 = (round(v) for v in box)
    copy = picture.copy()
    patch = picture.crop((x0, y0, x1, y1)).point(lambda v: (v + 128) % 256)
    copy.paste(patch, (x0, y0))
    return copy


def _changes(vlm, text, before, after, names):
    with torch.no_grad():
        old = vlm.run_with_cache(vlm.prompt(text, before), names_filter=list(names))[1]
        new = vlm.run_with_cache(vlm.prompt(text, after), names_filter=list(names))[1]
    return {n: (old[n] - new[n]).abs().flatten(2).amax(-1) for n in names}


def check_painting(
    vlm: HookedVLM, text: str, pictures, number: int, *, points=("projector.hook_out",
    "hook_merged"), exact=(), step: int = 1, grid: int = 0,
) -> None:  # fmt: skip
    """Of all positions, that of the painted patch changes most.

    Args:
        vlm: The model.
        text: A prompt of one row.
        pictures: Its pictures.
        number: Which of them is painted.
        points: Points at which the painted patch's position changes most.
        exact: Points of the tower at which the positions of the painted box change, and no others.
        step: Every how many patches is tried.
        grid: Which grid of the picture.
    """
    layout = vlm.prompt(text, pictures).layout.image[number]
    cells = layout.text.grids or layout.projector.grids
    for position in cells[grid].positions[::step]:
        box = cells[grid].pixels(position)
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            continue  # a patch of padding
        changed = [painted(p, box) if i == number else p for i, p in enumerate(pictures)]
        found = _changes(vlm, text, pictures, changed, (*points, *exact))
        for name in points:
            space = layout.space(vlm.architecture.points[name].space)
            expected = set(space.box(*box))
            most = tuple(torch.unravel_index(found[name].argmax(), found[name].shape))
            assert tuple(int(i) for i in most) in expected, (name, box, most, expected)
        for name in exact:
            moved = {tuple(p) for p in (found[name] > 1e-6).nonzero().tolist()}
            assert moved == set(layout.vision.box(*box)), (name, box)


def grey(size: tuple[int, int]) -> Image.Image:
    """A grey picture with a diagonal."""
    picture = Image.new("RGB", size, (120, 130, 140))
    ImageDraw.Draw(picture).line((0, 0, *size), fill=(200, 40, 90))
    return picture


def check_writes_act(vlm: HookedVLM, prompt, names) -> None:
    """A write to each point changes the logits; written back, it restores them."""
    plain, cache = vlm.run_with_cache(prompt, names_filter=list(names))
    for name in names:
        changed = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x.flip(-1))])
        assert (changed - plain).abs().max() > 1e-4, name
        same = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook, n=name: cache[n])])
        assert torch.equal(same, plain), name


def check_generation(vlm: HookedVLM, prompt, name: str) -> None:
    """Greedy tokens, plain and under a write in the prompt, are the same with and without cache."""
    from vlm_lens import Ablate, Images

    for interventions in ((), (Ablate(name, at=Images()),)):
        tokens = [
            vlm.generate(prompt, max_new_tokens=4, use_cache=c, interventions=interventions).tokens
            for c in (True, False)
        ]
        assert torch.equal(*tokens), name


def check_pattern_edit(vlm: HookedVLM, prompt, name: str, key: tuple[int, int]) -> None:
    """With one key cut out and rows summing to 1 again, what heads mix changes as it must.

    Args:
        vlm: The model.
        prompt: A prompt of one row.
        name: A pattern.
        key: (first axis, key) that no query may see any more.
    """
    z = name.replace("hook_pattern", "hook_z")

    def cut(x, hook):
        seen = x[..., key[1], None].clone()
        seen[torch.arange(len(x)) != key[0]] = 0
        without = x.clone()
        without[..., key[1]] = 0
        return torch.where(seen > 0, without / without.sum(-1, keepdim=True).clamp(min=1e-9), x)

    plain, cache = vlm.run_with_cache(prompt, names_filter=[name, z, name.replace("pattern", "v")])
    with vlm.hooks([(name, cut)]):
        changed, after = vlm.run_with_cache(prompt, names_filter=[name, z])
    assert (plain - changed).abs().max() > 1e-4
    pattern = cut(cache[name], None)
    v = cache[name.replace("pattern", "v")]
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2).transpose(1, 2)
    expected = (pattern @ v).transpose(1, 2)
    torch.testing.assert_close(after[z], expected, rtol=1e-4, atol=1e-5)
    untouched = (cache[name][key[0], :, :, key[1]] == 0).all(0)
    assert torch.equal(after[z][key[0], untouched], cache[z][key[0], untouched])
