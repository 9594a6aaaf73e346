"""What must hold of every family: checks that the tests of all families share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_lens import Ablate, All, HookedVLM, Images, Last, Patches
from vlm_lens.errors import PromptError
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.measures import GeneratedTokens
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.testing import conformance

# the checks that do not write to every point
QUICK = (
    "forward equals Hugging Face",
    "every point fires",
    "residual stream is one stream",
    "parts sum to the residual stream",
    "attention rows sum to 1",
    "generation equals Hugging Face",
    "patch -> pixels -> patch",
)

# ---------------------------------------------------------------------- pictures and prompts


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    return tiny.noise_picture(seed, size).convert(mode)


def odd_pictures() -> list[Image.Image]:
    """Pictures of odd shapes and modes."""
    sizes = ((17, 400), (400, 17), (64, 48), (1, 1), (30, 20), (20, 31), (33, 21))
    modes = ("RGB", "RGB", "RGB", "RGB", "RGBA", "L", "P")
    return [
        noise(size, mode, seed) for seed, (size, mode) in enumerate(zip(sizes, modes, strict=True))
    ]


def grey(size: tuple[int, int]) -> Image.Image:
    """A grey picture with a diagonal."""
    picture = Image.new("RGB", size, (120, 130, 140))
    ImageDraw.Draw(picture).line((0, 0, *size), fill=(200, 40, 90))
    return picture


def one(vlm: HookedVLM) -> Prompt:
    """A row with a picture."""
    return vlm.prompt("Q:<image>\nA:", [noise((64, 48))])


def batch(vlm: HookedVLM, *, text_only: bool = True) -> Prompt:
    """A padded batch: two pictures, none (where the model can), and one, in odd modes."""
    texts = ["<image>and<image>", "Q:Peru", "longer text:<image>\nA:"]
    pictures = [noise((30, 30), "RGBA"), noise((40, 20), "L"), noise((20, 50), "P")]
    rows = [pictures[:2], [], pictures[2:]]
    keep = [0, 1, 2] if text_only else [0, 2]
    return vlm.prompt([texts[i] for i in keep], [rows[i] for i in keep])


# ---------------------------------------------------------------------- what holds


def check_conforms(
    vlm: HookedVLM, prompt: Any, pictures: Any = None, *, quick: bool = False, cold: bool = False,
    only: Sequence[str] = (),
) -> None:  # fmt: skip
    """The conformance suite passes."""
    only = tuple(only) or (QUICK if quick else ())
    report = conformance(vlm, vlm.as_prompt(prompt, pictures), only=only, cold=cold)
    assert report.passed, str(report)


def check_errors(vlm: HookedVLM) -> None:
    """Image tokens without pixels, too many, too few: an error before the model runs."""
    inputs = dict(one(vlm).inputs)
    pixels = inputs.pop("pixel_values")
    with pytest.raises(PromptError, match="image tokens but no pixel_values"):
        vlm.run(inputs)
    inputs["pixel_values"] = pixels
    token = vlm.architecture.image_token_id
    place = int((inputs["input_ids"][0] == token).nonzero()[0])
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, place] = 10
    with pytest.raises(PromptError, match="image tokens"):
        vlm.run(inputs)
    with pytest.raises(PromptError, match="2 <image> placeholders and 1 picture"):
        vlm.prompt("Q:<image><image>", [noise((64, 48))])
    with pytest.raises(PromptError, match="placeholder"):
        vlm.prompt("Q:", [noise((64, 48))])


def check_batch_is_its_rows(vlm: HookedVLM, together: Prompt, tolerance: float = 1e-4) -> None:
    """A row of a batch has the logits and the coordinates of the same prompt alone."""
    logits = vlm.run(together)
    for row, (text, pictures) in enumerate(zip(together.texts, together.images, strict=True)):
        alone = vlm.prompt(text, list(pictures) or None)
        shift = together.length - alone.length
        assert together.layouts[row].start == shift
        torch.testing.assert_close(
            logits[row, -1], vlm.run(alone)[0, -1], rtol=tolerance, atol=tolerance
        )
        for here, there in zip(together.layouts[row].images, alone.layout.images, strict=True):
            assert here.positions == tuple(p + shift for p in there.positions)
            for a, b in zip(here.text.grids, there.text.grids, strict=True):
                assert a.positions == tuple(p + shift for p in b.positions)
                assert a.pixels_of == b.pixels_of


def check_writes_act(vlm: HookedVLM, prompt: Prompt, names: Sequence[str]) -> None:
    """A write to each point changes the logits; written back, it restores them."""
    plain, cache = vlm.run_with_cache(prompt, names_filter=list(names))
    for name in names:
        changed = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x.flip(-1))])
        assert (changed - plain).abs().max() > 1e-4, name
        same = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook, n=name: cache[n])])
        assert torch.equal(same, plain), name


def check_tower_writes(vlm: HookedVLM) -> None:
    """Ablating what the tower and the projector give changes the logits."""
    prompt = one(vlm)
    plain = vlm.run(prompt)
    last = vlm.cfg.vision.n_layers_read - 1 if vlm.cfg.vision else 0
    names = (f"vision.blocks.{last}.hook_resid_post", "vision.hook_out", "projector.hook_out")
    for name in (n for n in names if n in vlm.architecture.points):
        changed = vlm.run(prompt, interventions=Ablate(name, at=All()))
        assert (changed - plain).abs().max() > 1e-3, name


def check_boxes(vlm: HookedVLM, text: str = "<image>b<image>") -> None:
    """What is ablated in a box of the projector's output is zero there in the text, only there."""
    prompt = vlm.prompt(text, [noise((64, 48)), noise((50, 120))])
    for image, box in ((0, (20, 5, 40, 20)), (1, (0, 60, 9, 80)), (1, (0, 0, 50, 120))):
        ablate = Ablate("projector.hook_out", at=Patches(image=image, box=box))
        _, cache = vlm.run_with_cache(prompt, names_filter="hook_merged", interventions=ablate)
        zero = (cache["hook_merged"][0] == 0).all(-1).nonzero().flatten().tolist()
        assert zero == sorted(prompt.layout.image[image].box(*box)), (image, box)
        mask = np.array(painted((64, 48) if image == 0 else (50, 120), box, rim=0))[..., 1] == 0
        whole = Patches(image=image, box=box).resolve(prompt.layout)
        assert Patches(image=image, mask=mask).resolve(prompt.layout) == whole


def check_pattern_edit(vlm: HookedVLM, prompt: Prompt, name: str, key: tuple[int, int]) -> None:
    """With one key cut out and rows summing to 1 again, what heads mix changes as it must.

    Args:
        vlm: The model.
        prompt: A prompt of one row.
        name: A pattern.
        key: (first axis, key) that no query may see any more.
    """
    z = name.replace("hook_pattern", "hook_z")

    def cut(x: Tensor, hook: Any) -> Tensor:
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
    seen = pattern[..., : v.shape[-2]]  # a sink beside the keys (gpt-oss) adds nothing
    expected = (seen @ v).transpose(1, 2)
    torch.testing.assert_close(after[z], expected, rtol=1e-4, atol=1e-5)
    untouched = (cache[name][key[0], :, :, key[1]] == 0).all(0)
    assert torch.equal(after[z][key[0], untouched], cache[z][key[0], untouched])


# ---------------------------------------------------------------------- generation, replay


def check_generation(vlm: HookedVLM, prompt: Prompt, name: str) -> None:
    """Greedy tokens, plain and under a write in the prompt, are the same with and without cache."""
    for interventions in ((), (Ablate(name, at=Images()),)):
        tokens = [
            vlm.generate(prompt, max_new_tokens=4, use_cache=c, interventions=interventions).tokens
            for c in (True, False)
        ]
        assert torch.equal(*tokens), name


def check_grown(vlm: HookedVLM, prompt: Prompt, name: str, at: Any = None) -> None:
    """Tokens under a write in the prompt are those of full runs on the prompt grown by hand."""
    write = Ablate(name, at=at or Images())
    options = {"max_new_tokens": 4, "eos_token_id": -1}  # no token ends the text
    tokens = vlm.generate(prompt, interventions=write, **options).tokens
    grown = dict(prompt.inputs)
    for step in range(4):
        with torch.no_grad():
            logits = vlm.run(grown, interventions=write)
        new = logits[:, -1].argmax(-1)
        assert torch.equal(new, tokens[:, step]), (name, step)
        for key, column in (("input_ids", new), ("attention_mask", torch.ones_like(new))):
            grown[key] = torch.cat([grown[key], column[:, None]], 1)


def check_replay(vlm: HookedVLM, prompt: Prompt) -> None:
    """Replayed variants, and what is generated after them, are those of full runs."""
    layers = range(vlm.cfg.n_layers)
    names = [f"blocks.{i}.{n}" for i in layers for n in ("hook_resid_mid", "attn.hook_z")]
    variants = [Ablate(n, at) for n in (*names, "hook_merged") for at in (Images(), Last())]
    for measure in (lambda logits: {"logits": logits.tolist()}, GeneratedTokens(3)):
        replayed, full = (
            vlm.sweep(prompt, variants, engine=engine, measure=measure, progress=False)
            for engine in ("replay", "full")
        )
        for a, b in zip(replayed.records, full.records, strict=True):
            assert a.keys() == b.keys()
            if "tokens" in a:
                assert a["tokens"] == b["tokens"]
            else:
                torch.testing.assert_close(
                    torch.tensor(a["logits"]), torch.tensor(b["logits"]), rtol=1e-3, atol=1e-3
                )


# ---------------------------------------------------------------------- painting


def _cells(grid: PatchGrid) -> list[int]:
    """Some patches that show enough of the picture."""
    boxes = {p: grid.pixels(p) for p in grid.positions}
    areas = {p: max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for p, b in boxes.items()}
    good = [p for p in grid.positions if areas[p] > 0.7 * max(areas.values())]
    return sorted({good[0], good[len(good) // 2], good[-1], good[len(good) // 3]})


def painted(size: tuple[int, int], box: tuple[float, ...] | None, rim: float = 0.25) -> Image.Image:
    """A grey picture with one box in a strong colour, but for its rim, which resizing smears."""
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    if box is None:
        return Image.fromarray(pixels)
    x0, y0, x1, y1 = box
    w, h = (x1 - x0) * rim, (y1 - y0) * rim
    x0, y0, x1, y1 = (round(v) for v in (x0 + w, y0 + h, x1 - w, y1 - h))
    pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = (255, 0, 255)
    return Image.fromarray(pixels)


def _grids(vlm: HookedVLM, image: Any) -> Iterator[tuple[str, PatchGrid]]:
    for name in ("vision.hook_embed", "projector.hook_out", "hook_merged"):
        if name in vlm.architecture.points:
            for grid in image.space(vlm.architecture.points[name].space).grids:
                yield name, grid


def check_geometry(
    vlm: HookedVLM, size: tuple[int, int], text: str = "Q:<image>\nA:", which: int = 0,
    others: tuple[tuple[int, int], ...] = (),
) -> int:  # fmt: skip
    """Painting one patch's box changes most the position where the layout says it stands.

    In tower, projector and text, in every grid of the picture, at some of its patches; returns at
    how many.
    """

    def read(box: tuple[float, ...] | None) -> tuple[Prompt, Any]:
        pictures = [painted(s, None) for s in others]
        pictures.insert(which, painted(size, box))
        prompt = vlm.prompt(text, pictures)
        names = {name for name, _ in _grids(vlm, prompt.layout.images[which])}
        return prompt, vlm.run_with_cache(prompt, names_filter=sorted(names))[1]

    prompt, plain = read(None)
    count = 0
    for name, grid in _grids(vlm, prompt.layout.images[which]):
        for position in _cells(grid):
            box = grid.pixels(position)
            _, cache = read(box)
            change = (cache[name] - plain[name])[grid.row, list(grid.positions)].norm(dim=-1)
            found = grid.positions[int(change.argmax())]
            assert found == position, (name, grid.rows, grid.cols, position, found, box)
            shares = grid.shares(np.array(painted(size, box))[..., 1] == 0)
            assert grid.positions[int(shares.argmax())] == position, (name, position, box)
            count += 1
    return count


def inverted(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """The picture with a box of pixels inverted."""
    x0, y0, x1, y1 = (round(v) for v in box)
    copy = picture.copy()
    copy.paste(picture.crop((x0, y0, x1, y1)).point(lambda v: (v + 128) % 256), (x0, y0))
    return copy


def check_painting(
    vlm: HookedVLM, text: str, pictures: Sequence[Image.Image], number: int, *,
    points: Sequence[str] = ("projector.hook_out", "hook_merged"), exact: Sequence[str] = (),
    step: int = 1,
) -> None:  # fmt: skip
    """Of all positions, that of the inverted patch changes most.

    Args:
        vlm: The model.
        text: A prompt of one row.
        pictures: Its pictures.
        number: Which of them is changed.
        points: Points at which the patch's position changes most.
        exact: Points of the tower at which the positions of the box change, and no others.
        step: Every how many patches is tried.
    """
    names = [*points, *exact]
    before = vlm.run_with_cache(vlm.prompt(text, pictures), names_filter=names)[1]
    layout = vlm.prompt(text, pictures).layout.image[number]
    cells = (layout.text.grids or layout.projector.grids)[0]
    for position in cells.positions[::step]:
        box = cells.pixels(position)
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            continue  # a patch of padding
        changed = [inverted(p, box) if i == number else p for i, p in enumerate(pictures)]
        after = vlm.run_with_cache(vlm.prompt(text, changed), names_filter=names)[1]
        moves = {n: (before[n] - after[n]).abs().flatten(2).amax(-1) for n in names}
        for name in points:
            expected = set(layout.space(vlm.architecture.points[name].space).box(*box))
            most = tuple(torch.unravel_index(moves[name].argmax(), moves[name].shape))
            assert tuple(int(i) for i in most) in expected, (name, box, most, expected)
        for name in exact:
            moved = {tuple(p) for p in (moves[name] > 1e-6).nonzero().tolist()}
            assert moved == set(layout.vision.box(*box)), (name, box)
