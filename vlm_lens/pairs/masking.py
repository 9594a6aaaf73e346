"""A pair from one picture: the same with a region that is masked, or replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageFilter

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.answers import Answer
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.pictures import as_read
from vlm_lens.prompts.maker import Pictures, Promptable
from vlm_lens.prompts.template import RawPrompt

FILLS = ("mean", "around", "blur")
Fill = str | tuple[int, int, int] | Image.Image


def masked_pair(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    box: Sequence[float],
    answer: Answer,
    other: Answer | None = None,
    fill: Fill = "mean",
    image: int = 0,
) -> Pair:
    """A prompt, and the same with a region of one picture masked or replaced.

    Noise as a fill is off the data that a model has seen, and is not offered; a picture, of
    another object for example, stays nearest to them.

    Args:
        vlm: The model.
        prompt: One prompt whose text and pictures are known.
        images: Its pictures, where `prompt` is a text.
        box: `(x0, y0, x1, y1)`, in pixels of the picture as given.
        answer: What is right after the whole picture.
        other: What is right after the masked one, if anything is.
        fill: `"mean"` (the mean color of the picture), `"around"` (that of the pixels around the
            box), `"blur"` (the region, blurred by a quarter of its shorter side), a color as a name
            or `(r, g, b)`, or a picture, which is resized to the box.
        image: Which picture.

    Raises:
        PairError: A box outside the picture, no such fill, or a prompt of unknown text or pictures.
    """
    clean = vlm.as_prompt(prompt, images)
    if len(clean) != 1 or not clean.texts or not clean.images or not clean.images[0]:
        raise PairError(
            "A region is masked in one prompt whose text and pictures are known: give "
            'vlm.prompt("...<image>...", [picture]).'
        )
    pictures = list(clean.images[0])
    if not -len(pictures) <= image < len(pictures):
        raise PairError(f"This prompt has {len(pictures)} picture(s); image {image} was asked.")
    pictures[image] = filled(pictures[image], box, fill)
    corrupt = vlm.as_prompt(RawPrompt(clean.texts[0], tuple(pictures)))
    shown = fill if isinstance(fill, str) else "a picture" if isinstance(fill, Image.Image) else (
        "rgb" + str(tuple(fill))
    )  # fmt: skip
    differs = f"picture {image} {tuple(box)} filled with {shown}"
    return Pair(clean, corrupt, answer, other, differs=differs).check(vlm)


def filled(picture: Image.Image, box: Sequence[float], fill: Fill) -> Image.Image:
    """A picture with a box of pixels filled; see `masked_pair`.

    Raises:
        PairError: A box outside the picture, or no such fill.
    """
    x0, y0, x1, y1 = (round(v) for v in box)
    if not (0 <= x0 < x1 <= picture.width and 0 <= y0 < y1 <= picture.height):
        raise PairError(
            f"The box {tuple(box)} is no part of this {picture.width} x {picture.height} picture: "
            "give (x0, y0, x1, y1) in its pixels."
        )
    made = as_read(picture)
    made.paste(_content(made, (x0, y0, x1, y1), fill), (x0, y0, x1, y1))
    return made


def _content(
    picture: Image.Image, box: tuple[int, int, int, int], fill: Fill
) -> Image.Image | tuple[int, ...]:
    x0, y0, x1, y1 = box
    size = x1 - x0, y1 - y0
    if isinstance(fill, Image.Image):
        return as_read(fill).resize(size)
    if fill == "blur":
        return picture.filter(ImageFilter.GaussianBlur(min(size) / 4)).crop(box)
    pixels = np.asarray(picture)
    if fill == "mean":
        return _mean(pixels.reshape(-1, 3))
    if fill == "around":
        wide = max(1, min(size) // 8)
        near = np.zeros(pixels.shape[:2], bool)
        near[max(0, y0 - wide) : y1 + wide, max(0, x0 - wide) : x1 + wide] = True
        near[y0:y1, x0:x1] = False
        if not near.any():
            raise PairError(f"Nothing lies around the box {box}: it is the whole picture.")
        return _mean(pixels[near])
    try:
        return ImageColor.getrgb(fill)[:3] if isinstance(fill, str) else tuple(map(int, fill))
    except (ValueError, TypeError):
        raise PairError(
            f"fill is one of {', '.join(map(repr, FILLS))}, a color or a picture, not {fill!r}."
        ) from None


def _mean(pixels: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in pixels.mean(0).round())
