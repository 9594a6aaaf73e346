"""The prompt forms of Fuyu, one picture before a text, and of Mantis, several anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.pictures import as_read
from vlm_lens.tokens import IMAGE

PATCH, NEWLINE, OPEN, CLOSE = "|SPEAKER|", "|NEWLINE|", "|IMAGE|", "|ENDOFIMAGE|"
_START, _ANSWER = "<s>", "<0x04>"


class FuyuReader:
    """Fuyu's image processor and tokenizer, put together as the model was trained.

    Fuyu: the picture, `<s>`, the text, and the token that begins an answer. Mantis: a text is split
    at its pictures; the piece before picture j ends with `image j: `, every piece that is not empty
    starts with `<s>`, and a picture stands between `|IMAGE|` and `|ENDOFIMAGE|`; a text without
    pictures is the tokenizer's alone, without `<s>`. Both end each row of patches by `|NEWLINE|`.

    Args:
        image_processor: Fuyu's.
        tokenizer: The checkpoint's.
        mantis: Whether the form is Mantis's.
    """

    chat_template = None

    def __init__(self, image_processor: Any, tokenizer: Any, *, mantis: bool):
        if mantis:
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [OPEN, CLOSE]}, replace_extra_special_tokens=False
            )
        self.image_processor, self.tokenizer, self.mantis = image_processor, tokenizer, mantis

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Image.Image] = (),
        return_tensors: str = "pt",
        **options: Any,
    ) -> dict[str, Tensor]:
        """Left-padded `input_ids` and `attention_mask`, and `pixel_values` `[patches, pixels]`.

        Args:
            text: Texts, with `<image>` where pictures stand.
            images: The pictures of all texts, in reading order.
            return_tensors: `"pt"`, the only choice.
            options: Not used: padding is on the left, and special tokens are those of the form.

        Raises:
            PromptError: Pictures and places do not match.
        """
        texts = [text] if isinstance(text, str) else list(text)
        places = sum(t.count(IMAGE) for t in texts)
        if places != len(images):
            raise PromptError(f"The texts have {places} <image>, and there are {len(images)}.")
        cut = [self.patches(picture) for picture in images]
        shapes = iter([shape for _, shape in cut])
        rows = [self._ids(t.split(IMAGE), shapes) for t in texts]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, mine in enumerate(rows):
            ids[row, length - len(mine) :] = torch.tensor(mine)
            mask[row, length - len(mine) :] = 1
        found = {"input_ids": ids, "attention_mask": mask}
        return found | ({"pixel_values": torch.cat([p for p, _ in cut])} if cut else {})

    def patches(self, picture: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """A picture's patches, `[patches, pixels]`, and how many rows and columns they make."""
        if picture.mode != "RGB":  # Fuyu's image processor takes three channels, and converts none
            picture = as_read(picture)
        found = self.image_processor(picture, return_tensors="pt")
        image = torch.as_tensor(found["images"][0][0])
        side = self.image_processor.patch_size
        unpadded = (found["image_unpadded_heights"], found["image_unpadded_widths"])
        rows, cols = (
            ceil(int(size[0][0]) / step)
            for size, step in zip(unpadded, (side["height"], side["width"]), strict=True)
        )
        image = image[:, : rows * side["height"], : cols * side["width"]]
        cut = rearrange(image, "c (rows h) (cols w) -> (rows cols) (h w c)", rows=rows, cols=cols)
        return cut, (rows, cols)

    def _ids(self, pieces: list[str], shapes: Iterator[tuple[int, int]]) -> list[int]:
        if len(pieces) == 1:
            return self._text(pieces[0])
        start, answer = self.tokenizer.convert_tokens_to_ids([_START, _ANSWER])
        if not self.mantis:
            if len(pieces) > 2 or pieces[0]:
                raise PromptError(
                    "Fuyu reads one picture a text, before it: '<image>What is this?'."
                )
            return [*self._picture(*next(shapes)), start, *self._text(pieces[1]), answer]
        opening, closing = self.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
        ids: list[int] = []
        for number, piece in enumerate(pieces[:-1]):
            ids += [start, *self._text(f"{piece}image {number}: ")]
            ids += [opening, *self._picture(*next(shapes)), closing]
        last = self._text(pieces[-1])
        return [*ids, start, *last] if last else ids

    def _picture(self, rows: int, cols: int) -> list[int]:
        patch, newline = self.tokenizer.convert_tokens_to_ids([PATCH, NEWLINE])
        return [*[patch] * cols, newline] * rows

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """The tokenizer's."""
        return self.tokenizer.batch_decode(*args, **options)
