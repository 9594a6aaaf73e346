"""From a user's picture to the frame that an image processor makes of it."""

from __future__ import annotations

from typing import Any

from vlm_lens.geometry import PixelMap


def identity_map(frame: tuple[int, int]) -> PixelMap:
    """The map for a picture of which only the frame is known: its pixels are the frame's."""
    return PixelMap(frame, frame, (1.0, 1.0))


def resize_and_crop_map(
    image_processor: Any, picture: tuple[int, int], frame: tuple[int, int]
) -> PixelMap:
    """The map for processors of CLIP's kind: pad to a square or not, resize, crop or not.

    Args:
        image_processor: The Hugging Face image processor.
        picture: Width and height of the picture as given.
        frame: Width and height of the processor's result.
    """
    width, height = picture
    left = top = 0
    if getattr(image_processor, "do_pad", False):  # LLaVA's own processor pads to a square first
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        width = height = side
    new_width, new_height = _resized(image_processor, width, height)
    sx, sy = new_width / width, new_height / height
    crop_left = (
        int((new_width - frame[0]) / 2)
        if new_width >= frame[0]
        else -((frame[0] - new_width + 1) // 2)
    )
    crop_top = (
        int((new_height - frame[1]) / 2)
        if new_height >= frame[1]
        else -((frame[1] - new_height + 1) // 2)
    )
    return PixelMap(picture, frame, (sx, sy), (left * sx - crop_left, top * sy - crop_top))


def _resized(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    if not getattr(image_processor, "do_resize", True):
        return width, height
    size = image_processor.size
    shortest, longest = _entry(size, "shortest_edge"), _entry(size, "longest_edge")
    if shortest and not longest:
        scale_long = int(shortest * max(width, height) / min(width, height))
        return (shortest, scale_long) if width <= height else (scale_long, shortest)
    return _entry(size, "width"), _entry(size, "height")


def _entry(size: Any, key: str) -> int | None:
    return size.get(key) if isinstance(size, dict) else getattr(size, key, None)
