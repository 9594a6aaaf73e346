"""From a user's picture to the frame that an image processor makes of it."""

from __future__ import annotations

from typing import Any

from vlm_lens.layout.geometry import PixelMap

Size = tuple[int, int]


def identity_map(frame: Size) -> PixelMap:
    """The map for a picture of which only the frame is known: its pixels are the frame's."""
    return PixelMap(frame, frame, (1.0, 1.0))


def stretch_map(picture: Size, frame: Size) -> PixelMap:
    """The map of a resize to exactly the frame, whatever the picture's shape."""
    return PixelMap(picture, frame, (frame[0] / picture[0], frame[1] / picture[1]))


def square_map(picture: Size) -> PixelMap:
    """The map of a padding to a square, the picture in the middle."""
    side = max(picture)
    left, top = (side - picture[0]) // 2, (side - picture[1]) // 2
    return PixelMap(picture, (side, side), (1.0, 1.0), (left, top))


def chain(first: PixelMap, second: PixelMap) -> PixelMap:
    """One map for two steps, the second from the first's frame to its own."""
    (sx, sy), (ox, oy) = second.scale, second.offset
    scale = (first.scale[0] * sx, first.scale[1] * sy)
    offset = (first.offset[0] * sx + ox, first.offset[1] * sy + oy)
    return PixelMap(first.picture, second.frame, scale, offset)


def window_map(whole: PixelMap, corner: tuple[float, float], size: tuple[float, float]) -> PixelMap:
    """A part of a frame, such as a tile, as a frame of its own."""
    offset = (whole.offset[0] - corner[0], whole.offset[1] - corner[1])
    return PixelMap(whole.picture, size, whole.scale, offset)


def covered(pixels: PixelMap, rows: int, cols: int, patch: int) -> PixelMap:
    """The part of a frame that whole patches cover: 27 of 14 pixels leave 6 of 384 over."""
    return PixelMap(pixels.picture, (cols * patch, rows * patch), pixels.scale, pixels.offset)


def resize_and_crop_map(image_processor: Any, picture: Size, frame: Size) -> PixelMap:
    """The map for processors of CLIP's kind: resize or not, crop at the centre or not.

    Args:
        image_processor: The Hugging Face image processor.
        picture: Width and height of the picture as given.
        frame: Width and height of the processor's result.
    """
    resized = _resized(image_processor, *picture)
    left, top = (_crop(r, f) for r, f in zip(resized, frame, strict=True))
    scale = (resized[0] / picture[0], resized[1] / picture[1])
    return PixelMap(picture, frame, scale, (-left, -top))


def _crop(resized: int, frame: int) -> int:
    """What a crop at the centre cuts before; negative where it pads."""
    if resized >= frame:
        return int((resized - frame) / 2)
    return -((frame - resized + 1) // 2)


def _resized(image_processor: Any, width: int, height: int) -> Size:
    if not getattr(image_processor, "do_resize", True):
        return width, height
    size = image_processor.size
    shortest, longest = size_entry(size, "shortest_edge"), size_entry(size, "longest_edge")
    if shortest and not longest:
        scale_long = int(shortest * max(width, height) / min(width, height))
        return (shortest, scale_long) if width <= height else (scale_long, shortest)
    return size_entry(size, "width"), size_entry(size, "height")


def size_entry(size: Any, key: str) -> int | None:
    """An entry of an image processor's size, which is a dict or an object."""
    return size.get(key) if isinstance(size, dict) else getattr(size, key, None)
