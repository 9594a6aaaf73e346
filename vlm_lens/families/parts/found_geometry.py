"""Which patch of a picture stands where, of a tower that is not described: found by painting.

Some patches of the frame that the model sees are changed, one at a time, in one run of the model's
own `get_image_features`. What the tower's first block reads must change at one position alone, and
what stands in the text most at one; where these are those of a grid read row by row, it is known
where every patch stands. How the processor makes the frame of a picture is found in the same way,
by painting boxes of a picture of the same size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.found_tower import features_of
from vlm_lens.families.parts.picture import Picture, grid
from vlm_lens.families.parts.pixels import (
    Size,
    chain,
    covered,
    identity_map,
    resize_and_crop_map,
    square_map,
    stretch_map,
)
from vlm_lens.families.parts.probe_pictures import evaluating, features_function
from vlm_lens.layout.geometry import PixelMap
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.locks import lock_of
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite, Site, submodule

_UNTOLD = "how this model's processor makes a frame of a picture is not described"
_FORM = "this model's tensors of pictures are no frames of one picture each"
_ORDER = "painting a patch does not change one position of a grid"
_CLOSE = 1.5  # pixels of the frame by which the edge of a painted box may be off


@dataclass(frozen=True)
class CellGrid:
    """A grid of positions, row by row.

    Attributes:
        rows: Rows.
        cols: Columns.
        first: The position of the first cell.
    """

    rows: int
    cols: int
    first: int


@dataclass(frozen=True)
class Painted:
    """What painting patches of frames of one size has shown.

    Attributes:
        patch: Side of a patch in pixels of the frame.
        tower: The grid in the tower; `None` where it has no points or its patches have no order.
        text: The grid in what stands in the text; `None` where no position there is one patch's.
    """

    patch: int
    tower: CellGrid | None
    text: CellGrid | None


def painted(batch: PictureBatch) -> Painted | None:
    """Paints patches of the first frame of a batch; `None` where pictures are no such frames.

    Args:
        batch: A batch with pictures, each of one frame.
    """
    pixels, vision = batch.inputs.get("pixel_values"), batch.arch.cfg.vision
    function = features_function(batch.model)
    if pixels is None or pixels.dim() != 4 or vision is None or function is None:
        return None
    patch = vision.patch_size
    rows, cols = (side // patch for side in pixels.shape[-2:]) if patch else (0, 0)
    if rows < 2 or cols < 2:
        return None
    cells = list(dict.fromkeys(
        [(0, 0), (0, cols - 1), (rows - 1, 0), (rows - 1, cols - 1), (rows // 2, cols // 3)]
    ))  # fmt: skip
    frames = pixels[:1].repeat(1 + len(cells), 1, 1, 1)
    for number, (r, c) in enumerate(cells):
        frames[number + 1, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] += 1.0
    streams, features = _run(batch, function, frames)
    tower = None if streams is None else _in_tower(streams, cells, rows, cols)
    text = None if features is None else _in_text(features, cells, rows, cols)
    return Painted(patch, tower, text)


@torch.no_grad()
def _run(batch: PictureBatch, function: Any, frames: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the tower's first block reads, and what stands in the text, one row a frame."""
    takes, n = inspect.signature(function).parameters, len(frames)
    given: dict[str, Tensor] = {"pixel_values": frames}
    if "image_sizes" in takes and "image_sizes" in batch.inputs:
        given["image_sizes"] = batch.inputs["image_sizes"][:1].expand(n, -1)
    seen: list[Tensor] = []
    point: Point | None = dict(batch.arch.points).get("vision.hook_embed")
    handle = None if point is None else _watch(batch.model, point.site, n, seen)
    try:
        with lock_of(batch.model), evaluating(batch.model):
            features = features_of(function(**given))
    except Exception:  # noqa: BLE001  whatever a model may raise on several frames of its own
        return None, None
    finally:
        if handle is not None:
            handle.remove()
    streams = seen[0] if len(seen) == 1 else None
    if streams is not None and len(streams) == 1 and streams.shape[1] % n == 0:
        streams = streams.reshape(n, -1, streams.shape[-1])  # a tower that packs all into one row
    streams = streams if streams is not None and len(streams) == n else None
    if features is None or len(features) % n:
        return streams, None
    return streams, features.reshape(n, -1, features.shape[-1])


def _watch(model: nn.Module, site: Site, rows: int, seen: list[Tensor]) -> Any:
    """Keeps what stands at a site; gives the hook's handle."""
    if not isinstance(site, InputSite | OutputSite):
        return None

    def keep(value: Tensor | None) -> None:
        if value is not None:
            seen.append(site.view.split(value, rows) if site.view else value)

    module = submodule(model, site.module)
    if isinstance(site, InputSite):
        return module.register_forward_pre_hook(
            lambda m, args, kwargs: keep(site.get(args, kwargs)), with_kwargs=True, prepend=True
        )
    return module.register_forward_hook(lambda m, args, out: keep(site.get(out)), prepend=True)


def _in_tower(
    streams: Tensor, cells: Sequence[tuple[int, int]], rows: int, cols: int
) -> CellGrid | None:
    """The grid at whose cells alone the stream has changed."""
    first = streams.shape[1] - rows * cols
    for x, (r, c) in zip(streams[1:], cells, strict=True):
        changed = (x != streams[0]).any(-1).nonzero().flatten().tolist()
        if changed != [first + r * cols + c]:
            return None
    return CellGrid(rows, cols, first)


def _in_text(
    features: Tensor, cells: Sequence[tuple[int, int]], rows: int, cols: int
) -> CellGrid | None:
    """The grid at whose cells features have changed most: of patches, or of squares of them."""
    change = (features[1:].float() - features[:1].float()).norm(dim=-1)
    if not torch.isfinite(change).all():
        return None
    most = change.argmax(-1).tolist()
    for side in range(1, min(rows, cols)):
        if rows % side or cols % side:
            continue
        found = CellGrid(rows // side, cols // side, features.shape[1] - rows * cols // side**2)
        if found.first not in (0, 1):
            continue
        if most == [found.first + r // side * found.cols + c // side for r, c in cells]:
            return found
    return None


def proved_map(image_processor: Any, size: Size, frame: Size) -> PixelMap | None:
    """How a processor makes a frame of a picture, proved by painting two boxes of one.

    Args:
        image_processor: The Hugging Face image processor.
        size: Width and height of the picture.
        frame: Width and height of the frame.
    """
    width, height = size
    boxes = [
        (int(x0 * width), int(y0 * height), int(x1 * width), int(y1 * height))
        for x0, y0, x1, y1 in ((0.5, 0.15, 0.8, 0.45), (0.2, 0.55, 0.45, 0.85))
    ]
    plain = Image.new("RGB", size, (90, 100, 110))
    pictures = [plain, plain.copy(), plain.copy()]
    for picture, box in zip(pictures[1:], boxes, strict=True):
        picture.paste((220, 230, 240), box)
    try:
        made = [image_processor(p, return_tensors="pt")["pixel_values"] for p in pictures]
    except Exception:  # noqa: BLE001  whatever a processor may raise on a picture of this form
        return None
    if any(m.dim() != 4 or len(m) != 1 or m.shape[-2:] != frame[::-1] for m in made):
        return None
    found = [_painted_box(made[0][0], m[0]) for m in made[1:]]
    best = min(_maps(image_processor, size, frame), key=lambda m: _error(m, boxes, found))
    return best if _error(best, boxes, found) <= _CLOSE else None


def _maps(image_processor: Any, size: Size, frame: Size) -> Iterator[PixelMap]:
    """What processors do to pictures: resize and crop, stretch, pad to a square and stretch."""
    yield stretch_map(size, frame)
    square = square_map(size)
    yield chain(square, stretch_map(square.frame, frame))
    try:
        yield resize_and_crop_map(image_processor, size, frame)
    except (TypeError, AttributeError):
        return


def _painted_box(plain: Tensor, drawn: Tensor) -> tuple[float, ...] | None:
    """The box of pixels of a frame that painting has changed by more than half."""
    change = (drawn - plain).float().abs().amax(0)
    if not change.any():
        return None
    ys, xs = (change > change.max() / 2).nonzero().T
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def _error(pixels: PixelMap, boxes: Sequence[tuple], found: Sequence[tuple | None]) -> float:
    """How far the edges of boxes are from where a map puts them, in pixels of the frame."""
    (width, height), most = pixels.frame, 0.0
    for box, seen in zip(boxes, found, strict=True):
        if seen is None:
            return float("inf")
        limits = (width, height, width, height)
        where = [
            min(max(v, 0.0), float(m)) for v, m in zip(pixels.to_frame(box), limits, strict=True)
        ]
        most = max(most, *(abs(a - b) for a, b in zip(where, seen, strict=True)))
    return most


def placed(
    batch: PictureBatch, pictures: Sequence[Picture], shown: Painted | None
) -> list[Picture]:
    """Pictures with the grids that painting has shown, and the reason where it has shown none.

    Args:
        batch: The batch.
        pictures: Its pictures, without grids.
        shown: What painting has shown of frames of this size.
    """
    pixels = batch.inputs.get("pixel_values")
    if shown is None or pixels is None or len(pixels) != len(pictures):
        return [_without(picture, _FORM) for picture in pictures]
    found = []
    for number, picture in enumerate(pictures):
        size = batch.size(number)
        how = identity_map(batch.frame)
        if size is not None and batch.image_processor is not None:
            how = proved_map(batch.image_processor, size, batch.frame)
        if how is None:
            found.append(_without(picture, _UNTOLD))
            continue
        found.append(_on_grids(picture, shown, how))
    return found


def _without(picture: Picture, why: str) -> Picture:
    spaces = (replace(space, why_no_grid=why) for space in (picture.vision, picture.projector))
    return replace(picture, vision=next(spaces), projector=next(spaces), why_no_grid=why)


def _on_grids(picture: Picture, shown: Painted, how: PixelMap) -> Picture:
    def space(old: ImageSpace, cells: CellGrid | None) -> ImageSpace:
        if cells is None or len(old.sequences) != 1:
            return replace(old, why_no_grid=_ORDER)
        row, positions = old.sequences[0]
        if len(positions) < cells.first + cells.rows * cells.cols:
            return replace(old, why_no_grid=_ORDER)
        side = shown.patch * (shown.tower or cells).rows // cells.rows
        whole = covered(how, cells.rows, cells.cols, side)
        seen = grid(cells.rows, cells.cols, positions[0] + cells.first, row, whole)
        return ImageSpace(seen, old.sequences)

    text, projector = shown.text, space(picture.projector, shown.text)
    if text is None or picture.n_tokens != text.first + text.rows * text.cols:
        return replace(
            picture, vision=space(picture.vision, shown.tower), projector=projector,
            why_no_grid=_ORDER,
        )  # fmt: skip
    frame = how.frame[1] // shown.patch // text.rows * shown.patch
    grids = grid(text.rows, text.cols, text.first, 0, covered(how, text.rows, text.cols, frame))
    return replace(
        picture, grids=grids, vision=space(picture.vision, shown.tower), projector=projector,
        why_no_grid="",
    )  # fmt: skip
