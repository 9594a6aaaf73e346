"""Pictures as they are given: opened, told apart, and shown as a processor reads them."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_lens.errors import PromptError

__all__ = ["as_picture", "as_read", "fingerprint", "is_transparent", "thumbnail", "warn_of"]

_ORIENTATION = 0x0112  # the EXIF tag


def as_picture(given: Any, what: str = "A picture") -> Image.Image:
    """A PIL picture as it is; a file opened, and turned upright as its EXIF orientation asks.

    Mode, palette, alpha and depth stay as they are: what becomes of them is the processor's to say.

    Args:
        given: A PIL picture, or the path of a file.
        what: What it is called in messages.

    Raises:
        PromptError: A URL, a file that holds no picture, or something else.
    """
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, str) and given.startswith(("http://", "https://", "data:")):
        raise PromptError(
            f"{what} is a URL ({given[:60]}), and vlm_lens fetches nothing: download it, and pass "
            "PIL.Image.open(path) or the path."
        )
    if isinstance(given, str | Path):
        return _opened(Path(given), what)
    hint = "open a file with PIL.Image.open"
    if hasattr(given, "__array__") or hasattr(given, "shape"):
        hint = "turn an array of 8-bit values into one with PIL.Image.fromarray"
    elif isinstance(given, list | tuple):
        hint = "give one flat list of pictures in reading order, or one list of them a text"
    raise PromptError(f"{what} is a PIL picture or a path, not {type(given).__name__}: {hint}.")


def _opened(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise PromptError(f"{what} is the path {str(path)!r}, and there is no such file.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PromptError(f"{what}: {path} cannot be read as a picture: {error}") from error


def warn_of(pictures: list[Image.Image]) -> None:
    """Says what a processor does not look at: orientation, and values beyond 8 bits.

    Raises:
        PromptError: A picture that cannot be read, or that has no pixels.
    """
    for number, picture in enumerate(pictures):
        if not all(picture.size):
            width, height = picture.size
            raise PromptError(f"Picture {number} has no pixels: it is {width} x {height}.")
        try:
            picture.load()
        except (OSError, ValueError, SyntaxError) as error:  # cut short, damaged, or closed
            raise PromptError(
                f"Picture {number} cannot be read ({error}): pass the path of a whole file, or a "
                "picture that is still open."
            ) from error
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            warnings.warn(
                f"Picture {number} carries an EXIF orientation, which processors do not look at: "
                "the model reads it, and pixels are counted, as it is stored, not as viewers show "
                "it. Turn it upright first: PIL.ImageOps.exif_transpose(picture).",
                stacklevel=4,
            )
        if picture.mode.startswith(("I", "F")):
            low, high = (float(v) for v in picture.getextrema())  # type: ignore[arg-type]
            if low < 0 or high > 255 or (picture.mode == "F" and high <= 1):
                warnings.warn(
                    f"Picture {number} has values from {low:g} to {high:g} (mode {picture.mode}); "
                    "processors read 0 to 255 and clip the rest. Scale it to 8 bits first: "
                    "PIL.Image.fromarray((array / array.max() * 255).astype('uint8')).",
                    stacklevel=4,
                )


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel or a transparent colour."""
    return "A" in picture.getbands() or picture.info.get("transparency") is not None


def as_read(picture: Image.Image) -> Image.Image:
    """The picture in RGB as transformers' processors read it: what is transparent becomes white."""
    if is_transparent(picture):
        over = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, over)
    found = picture.convert("RGB").copy()
    found.info.clear()  # an orientation there would turn it in a browser
    return found


def fingerprint(picture: Image.Image) -> str:
    """A hash of all that a processor can see of a picture: size, mode, pixels, palette, alpha."""
    digest = hashlib.sha256(repr((picture.mode, picture.size)).encode())
    digest.update(picture.tobytes())
    if (palette := picture.getpalette()) is not None:
        digest.update(bytes(palette))
    digest.update(repr(picture.info.get("transparency")).encode())
    return digest.hexdigest()


def thumbnail(image: Image.Image, *, height: int = 48, alt: str = "picture") -> str:
    """An HTML tag that shows the picture small, with no file beside it.

    Args:
        image: The picture.
        height: The height shown, in pixels.
        alt: What it shows, for who does not see it.

    Returns:
        An `img` tag with the picture inside.
    """
    width = max(1, round(image.width * height / image.height))
    data = io.BytesIO()
    as_read(image).resize((width, height)).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alt)}" height="{height}" '
        'style="vertical-align:middle">'
    )
