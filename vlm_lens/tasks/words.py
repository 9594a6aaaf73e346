"""Words drawn as pictures: what a model does with them needs reading."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from vlm_lens.tasks.rows import TaskError

__all__ = ["draw_words"]

_MARGIN = 0.06  # of the picture, on each side
_LARGEST, _SMALLEST = 0.3, 0.03


def draw_words(
    text: str, *, size: int = 224, font: ImageFont.FreeTypeFont | None = None
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draw a text black on white, as large as it fits, in the middle.

    Args:
        text: The text; it is broken at spaces where that lets it be larger.
        size: Width and height of the picture, in pixels.
        font: A font with all its letters; Pillow's own, which has ASCII only, if None.

    Returns:
        The picture, and the box `(x0, y0, x1, y1)` of the words in it.

    Raises:
        TaskError: There is nothing to draw, or letters that the font does not have, or no room.
    """
    if not text.strip():
        raise TaskError("there are no words to draw")
    lacking = sorted({letter for letter in text if not letter.isascii()})
    if font is None and lacking:
        raise TaskError(
            f"Pillow's own font has no {''.join(lacking)!r}, which {text!r} needs: pass "
            "font=ImageFont.truetype('some.ttf')"
        )
    font = font or ImageFont.load_default(16)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TaskError("this Pillow draws bitmap fonts only; install one with FreeType")
    room = size * (1 - 2 * _MARGIN)
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for points in range(round(_LARGEST * size), max(round(_SMALLEST * size), 1) - 1, -1):
        scaled = font.font_variant(size=points)
        lines = _lines(text.split(), scaled, room)
        x0, y0, x1, y1 = draw.multiline_textbbox((0, 0), lines, font=scaled, align="center")
        if x1 - x0 <= room and y1 - y0 <= room:
            break
    else:
        raise TaskError(f"{text!r} does not fit into {size} x {size} pixels; take a larger size")
    corner = ((size - (x1 - x0)) / 2 - x0, (size - (y1 - y0)) / 2 - y0)
    draw.multiline_text(corner, lines, fill="black", font=scaled, align="center")
    box = Image.eval(image.convert("L"), lambda value: 255 - value).getbbox()
    return image, box


def _lines(words: list[str], font: ImageFont.FreeTypeFont, room: float) -> str:
    """The words with line breaks where a line would become too long."""
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
