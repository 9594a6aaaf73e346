"""Where the frames of videos stand in the text, told by the tensors that hold them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import isqrt
from typing import Any

from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import GivenVideo, PictureBatch
from vlm_lens.families.parts.pixels import Size, identity_map, resize_and_crop_map, stretch_map
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.pictures import FrameLayout, ImageSpace, VideoLayout

PIXELS = "pixel_values_videos"


@dataclass(frozen=True)
class Shape:
    """The shape of one video in the text.

    Attributes:
        moments: Frames after those merged in time count as one.
        merged: How many frames become one.
        rows: Patches from top to bottom, after those merged in space count as one.
        cols: Patches from left to right.
        frame: Width and height in pixels of what the tower sees.
        rest: Positions after all moments: separators.
    """

    moments: int
    merged: int
    rows: int
    cols: int
    frame: Size
    rest: int = 0

    @property
    def length(self) -> int:
        """All its positions."""
        return self.moments * self.rows * self.cols + self.rest


def video_token(config: Any) -> int | None:
    """The token that stands for a patch of a video."""
    for name in ("video_token_id", "video_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def video_layouts(batch: PictureBatch) -> list[list[VideoLayout]]:
    """The videos of each row of a batch.

    Raises:
        PromptError: Video tokens and the tensors of videos do not match.
    """
    if PIXELS not in inspect.signature(batch.model.forward).parameters:
        return [[] for _ in batch.ids]
    token = video_token(batch.config)
    places = [[i for i, t in enumerate(row) if t == token] for row in batch.ids]
    found, shapes = sum(map(len, places)), list(_shapes(batch, sum(map(len, places))))
    pictures = {getattr(batch.config, n, None) for n in ("image_token_id", "image_token_index")}
    if not shapes and token in pictures:  # one token for both, as in Molmo 2: these are pictures
        return [[] for _ in batch.ids]
    if found and not shapes:
        raise PromptError(
            f"The prompt holds {found} video tokens but no {PIXELS}: give the videos, "
            "vlm.prompt(text, videos=[...])."
        )
    if sum(s.length for s in shapes) != found:
        raise PromptError(
            f"{len(shapes)} video(s) of {' + '.join(str(s.length) for s in shapes)} positions do "
            f"not fit the {found} video tokens of the prompt: write one <video> for each."
        )
    queue = enumerate(shapes)
    return [_of_row(batch, row, mine, queue) for row, mine in enumerate(places)]


def _of_row(
    batch: PictureBatch, row: int, places: list[int], queue: Iterator[tuple[int, Shape]]
) -> list[VideoLayout]:
    videos: list[VideoLayout] = []
    while places:
        number, shape = next(queue)
        mine, places = places[: shape.length], places[shape.length :]
        if len(mine) < shape.length:
            raise PromptError(f"Text {row} of the batch ends within a video: was it cut?")
        given = batch.videos[number] if number < len(batch.videos) else GivenVideo()
        videos.append(_placed(len(videos), shape, mine, row, given, _pixels(batch, shape, given)))
    return videos


def _placed(
    index: int, shape: Shape, mine: list[int], row: int, given: GivenVideo, pixels: PixelMap
) -> VideoLayout:
    positions, frames = iter(mine), []
    n_frames = given.n_frames or shape.moments * shape.merged
    for moment in range(shape.moments):
        here = tuple(islice(positions, shape.rows * shape.cols))
        first = moment * shape.merged
        merged = tuple(range(first, min(first + shape.merged, n_frames)))
        seconds = None
        if given.fps:
            seconds = (first / given.fps, (first + shape.merged) / given.fps)
        cells = PatchGrid(shape.rows, shape.cols, here, row, pixels)
        text = ImageSpace((cells,) if here else (), ((row, here),))
        frames.append(FrameLayout(moment, merged, text, seconds))
    return VideoLayout(index, tuple(frames), tuple(positions))


def _pixels(batch: PictureBatch, shape: Shape, given: GivenVideo) -> PixelMap:
    if given.size is None:
        return identity_map(shape.frame)
    if "video_grid_thw" in batch.inputs:
        return stretch_map(given.size, shape.frame)
    how = getattr(batch.processor, "video_processor", None) or batch.image_processor
    whole = batch.inputs[PIXELS].shape[-2:]
    pixels = resize_and_crop_map(how, given.size, (whole[1], whole[0]))
    return replace(pixels, frame=shape.frame)


def _shapes(batch: PictureBatch, n_tokens: int) -> Iterator[Shape]:
    """The shape of each video of the batch.

    Raises:
        PromptError: It cannot be told.
    """
    pixels: Tensor | None = batch.inputs.get(PIXELS)
    if pixels is None:
        return
    grids = batch.inputs.get("video_grid_thw")
    if grids is not None:
        yield from _of_grids(batch, grids.tolist())
        return
    if pixels.dim() != 5:
        raise PromptError(f"Videos of the form {list(pixels.shape)} are not described.")
    n_videos, n_frames, _, height, width = pixels.shape
    each, more = divmod(n_tokens, n_videos)
    side = isqrt(each // n_frames)
    rest = each - n_frames * side**2
    if more or side**2 != each // n_frames or rest > 1:
        raise PromptError(
            f"{n_tokens} video tokens are no squares of patches for {n_videos} video(s) of "
            f"{n_frames} frames, so where a frame stands cannot be told."
        )
    patch = getattr(getattr(batch.config, "vision_config", None), "patch_size", None)
    patch = patch if isinstance(patch, int) else 1
    seen = (width - width % patch, height - height % patch)  # what whole patches cover
    for _ in range(n_videos):
        yield Shape(n_frames, 1, side, side, seen, rest)


def _of_grids(batch: PictureBatch, grids: list[list[int]]) -> Iterator[Shape]:
    config: Any = getattr(batch.config, "vision_config", None)
    merges = batch.inputs.get("video_merge_sizes")
    merge = getattr(config, "spatial_merge_size", None) or getattr(config, "merge_size", None) or 1
    patch = config.patch_size
    times = getattr(config, "temporal_patch_size", None) or 1
    for number, (moments, rows, cols) in enumerate(grids):
        by = merge if merges is None else int(merges[number])
        yield Shape(moments, times, rows // by, cols // by, (cols * patch, rows * patch))
