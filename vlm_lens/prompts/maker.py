"""One maker of a model's prompts: from text and pictures, conversations, or tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families import Architecture, Family, GivenVideo, PictureBatch
from vlm_lens.layout.layout import Layout
from vlm_lens.locks import lock_of
from vlm_lens.pictures import as_picture, is_transparent, warn_of
from vlm_lens.prompts.chat import Message, starts_with_bos, write_chat
from vlm_lens.prompts.inputs import as_inputs, left_padded
from vlm_lens.prompts.layouts import as_typed, layouts_of
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.prompts.videos import VIDEO, Videos, clips_of, given, video_options
from vlm_lens.tokens import IMAGE, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Texts = str | RawPrompt | Sequence[str | RawPrompt]
Picture = Image.Image | str | Path
Pictures = Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None
Promptable = Prompt | Texts | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class PromptMaker:
    """Makes the prompts of one model.

    Attributes:
        model: The Hugging Face model.
        family: Its family.
        architecture: Its parts.
        processor: Its processor or tokenizer; `None` where prompts come as tensors.
    """

    model: PreTrainedModel
    family: Family
    architecture: Architecture
    processor: Any

    def of(self, given: Promptable, images: Pictures = None) -> Prompt:
        """A prompt from whatever a user may give: one already made, text, or tensors.

        In a list each is a prompt of its own, in which places mean what they mean alone.

        Raises:
            PromptError: A prompt made for another model, or what is no prompt.
        """
        if isinstance(given, Prompt | Mapping) and images is not None:
            raise PromptError("A prompt already made brings its own pictures: leave images= out.")
        if isinstance(given, Prompt):
            cfg = self.architecture.cfg
            if given.made_for != cfg:
                made_for = given.made_for
                whose = f"{made_for.model_name} ({made_for.family})" if made_for else "no model"
                raise PromptError(
                    f"This prompt was made for {whose}, not for {cfg.model_name} ({cfg.family}): "
                    "make it again with this model's prompt()."
                )
            return given
        if isinstance(given, Mapping):
            return self.from_tensors(given)
        made = self.from_text(given, images)
        return made.of_rows_alone() if isinstance(given, list | tuple) else made

    @torch.inference_mode(False)  # a prompt made there is used outside, with gradients too
    def from_text(
        self,
        text: Texts,
        images: Pictures = None,
        *,
        add_special_tokens: bool = True,
        videos: Videos = None,
        fps: float | None = None,
    ) -> Prompt:
        """Runs the processor on texts and their pictures and videos, which it gets as they are.

        Raises:
            PromptError: Pictures and placeholders do not match, or the processor refuses them.
        """
        if self.processor is None:
            raise PromptError(
                "This HookedVLM has no processor, so it cannot read text: give one, "
                "HookedVLM(model, processor), or pass a processor's own output."
            )
        if not self.family.takes_images and _shows_any(images):
            self.family.placeholder(self.processor)  # raises, and says that it takes none
        texts, rows = _texts_and_pictures(text, images)
        for one in texts:
            _check_characters(one)
        flat = [picture for row in rows for picture in row]
        clips = clips_of(texts, videos)
        if flat:
            warn_of(flat)
            self._warn_of_lost_alpha(flat)
        options: dict[str, Any] = {"return_tensors": "pt"}
        if len(texts) > 1:
            options |= self._padding()
        if not add_special_tokens:
            options["add_special_tokens"] = False
        if clips:
            options |= video_options(self.processor, clips, fps)
            mark = self.family.video_placeholder(self.processor)
            texts = [t.replace(VIDEO, mark) for t in texts]
        if flat or clips:
            placeholder = self.family.placeholder(self.processor)
            written = [t.replace(IMAGE, placeholder) for t in texts]
            inputs = self._process(written, rows, options)
        else:
            inputs = self.family.tokenize(self.processor, texts, **options)
        return self.from_tensors(
            dict(inputs), sizes=[p.size for p in flat] or None, texts=tuple(texts),
            images=tuple(map(tuple, rows)), videos=[given(clip, fps) for clip in clips],
        )  # fmt: skip

    def from_chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], **options: Any
    ) -> Prompt:
        """Conversations in the form of the model's own chat template; see `HookedVLM.chat`.

        Special tokens are added as transformers does: a tokenizer's template writes them all, a
        processor adds its own unless the template began with the first.
        """
        raws = write_chat(messages, self.processor, self.family, **options)
        processed = tokenizer_of(self.processor) is not self.processor
        adds = processed and not starts_with_bos(raws[0].text, self.processor)
        given = raws if len(raws) > 1 else raws[0]
        return self.from_text(given, add_special_tokens=adds)

    def from_tensors(
        self,
        inputs: Mapping[str, Any],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        texts: tuple[str, ...] = (),
        images: tuple[tuple[Image.Image, ...], ...] = (),
        videos: Sequence[GivenVideo] = (),
    ) -> Prompt:
        """A processor's output, checked and given its layouts.

        Args:
            inputs: The tensors.
            sizes: Width and height of each picture as the processor saw it, where known.
            texts: The text of each row, where known.
            images: The pictures of each row, where known.
            videos: Each video as it was given, where known.

        Raises:
            PromptError: Tensors that are no prompt for this model.
        """
        arch, tokenizer = self.architecture, tokenizer_of(self.processor)
        tensors = as_inputs(inputs, self.model, arch)
        batch = PictureBatch(self.model, arch, tensors, self.processor, sizes, videos)
        pictures, clips = self.family.image_layouts(batch), self.family.video_layouts(batch)
        self.check_length(tensors)
        layouts = layouts_of(tensors, arch, pictures, clips, tokenizer)
        if len(texts) == len(layouts):
            layouts = tuple(map(self._as_typed, layouts, texts))
        return Prompt(tensors, layouts, texts, images, tuple(videos), arch.cfg)

    def check_length(self, inputs: Mapping[str, Tensor], n_new: int = 0) -> None:
        """Warns of more positions than the model was made for; refuses more than it can number.

        Args:
            inputs: A prompt's tensors.
            n_new: How many tokens the model reads after it.

        Raises:
            PromptError: The model looks positions up in a table, which ends before the prompt.
        """
        ids = self.architecture.ids
        if ids in inputs and "input_ids" in inputs and ids != "input_ids" and not n_new:
            self.check_length({"input_ids": inputs[ids]})  # of the answer, and of what is asked
        elif ids in inputs:
            inputs = {**inputs, "input_ids": inputs[ids]}
        given, length = inputs.get("position_ids"), inputs["input_ids"].shape[1]
        if given is not None and given.numel():
            length = int(given.max()) + 1
        what = f"This prompt has {length} positions"
        most, config = self.architecture.n_positions, self.model.config
        if most is not None and length + n_new > most:
            new = f" and {n_new} new tokens are read after it" if n_new else ""
            fix = f"generate at most {most - length + 1} tokens, " if most - length >= 0 else ""
            raise PromptError(
                f"{what}{new}, and {self.architecture.cfg.model_name} has a table of {most}, "
                f"beyond which it cannot run: {fix}shorten the text, or take fewer pictures."
            )
        made_for = getattr(config.get_text_config(), "max_position_embeddings", None)
        if not n_new and isinstance(made_for, int) and length > made_for:
            warnings.warn(
                f"{what}, and the model was made for {made_for}: what it gives beyond them means "
                "little. Shorten the text, or take fewer or smaller pictures.",
                stacklevel=4,
            )

    def left_padded(self, prompt: Prompt) -> Prompt:
        """The prompt with padding only before its rows, so that all end at the last position.

        Positions by number, `At(...)`, still count as in the prompt given.
        """
        after = [prompt.length - 1 - layout.last for layout in prompt.layouts]
        if not any(after):
            return prompt
        moved = self.from_tensors(
            left_padded(prompt.inputs, after),
            sizes=[p.size for row in prompt.images for p in row] or None,
            texts=prompt.texts, images=prompt.images, videos=prompt.videos,
        )  # fmt: skip
        layouts = [
            at.by_itself() if given.alone else replace(at, shifted=n)
            for at, given, n in zip(moved.layouts, prompt.layouts, after, strict=True)
        ]
        return replace(moved, layouts=tuple(layouts))

    def _as_typed(self, layout: Layout, text: str) -> Layout:
        mark = IMAGE
        if self.family.takes_images and IMAGE in text:
            mark = self.family.placeholder(self.processor)
        asked = layout if layout.encoder is None else layout.encoder
        with lock_of(self.model):  # a fast tokenizer serves one thread at a time
            asked = as_typed(asked, text, mark, tokenizer_of(self.processor))
        return asked if layout.encoder is None else replace(layout, encoder=asked)

    def _padding(self) -> dict[str, Any]:
        if getattr(tokenizer_of(self.processor), "pad_token", None) is None:
            raise PromptError(
                "A batch is padded, and this tokenizer has no padding token: set one, "
                "vlm.tokenizer.pad_token = vlm.tokenizer.eos_token, or run the texts one by one."
            )
        # an encoder may count its positions from the row's beginning, padding or not
        side = "left" if self.architecture.encoder is None else "right"
        return {"padding": True, "padding_side": side}

    def _warn_of_lost_alpha(self, pictures: list[Image.Image]) -> None:
        """Says where this processor shows what lies beneath what is transparent."""
        if not any(map(is_transparent, pictures)):
            return
        clear, white = (
            Image.new("RGBA", (64, 64), (0, 0, 0, 0)),
            Image.new("RGB", (64, 64), "white"),
        )
        text, options = [self.family.placeholder(self.processor)], {"return_tensors": "pt"}
        one, two = (
            self.family.process(self.processor, text, [[probe]], **options).get("pixel_values")
            for probe in (clear, white)
        )
        if one is not None and two is not None and not torch.equal(one, two):
            warnings.warn(
                "This model's processor drops transparency: it reads the colours stored beneath "
                "what is transparent, often black. Put the picture over a ground first: "
                "vlm_lens.pictures.as_read(picture) puts it over white.",
                stacklevel=4,
            )

    def _process(
        self, texts: list[str], rows: list[list[Image.Image]], options: dict[str, Any]
    ) -> Mapping[str, Any]:
        try:
            with lock_of(self.model):  # a fast tokenizer serves one thread at a time
                return self.family.process(self.processor, texts, rows, **options)
        except PromptError:
            raise
        except Exception as error:
            modes = sorted({p.mode for row in rows for p in row} - {"RGB"})
            if not modes:
                raise
            raise PromptError(
                f"This model's processor does not take a picture of mode {', '.join(modes)} "
                f"({type(error).__name__}: {str(error)[:120]}): pass picture.convert('RGB'), over "
                "a ground of your choice where it is transparent."
            ) from error


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The text has half of a character at index {error.start}, {text[error.start]!r}, "
            "which no tokenizer reads: it was cut, or decoded with errors='surrogateescape'."
        ) from None


def _shows_any(images: Pictures) -> bool:
    return isinstance(images, Image.Image | str | Path) or any(images or ())


def raw_prompts(text: Any, images: Any = None) -> list[RawPrompt]:
    """Texts and their pictures as RawPrompts, one each.

    Raises:
        PromptError: Pictures and placeholders do not match, or it is no text.
    """
    texts, rows = _texts_and_pictures(text, images)
    return [RawPrompt(t, tuple(row)) for t, row in zip(texts, rows, strict=True)]


def _texts_and_pictures(text: Any, images: Any) -> tuple[list[str], list[list[Image.Image]]]:
    """Texts, and the pictures of each, from what a user may give."""
    given = list(text) if isinstance(text, list | tuple) else [text]
    if not given or not all(isinstance(t, str | RawPrompt) for t in given):
        raise PromptError(
            f"A prompt is a text or a list of texts, RawPrompts, a Prompt or a processor's output; "
            f"it got {text!r:.80}."
        )
    if any(isinstance(t, RawPrompt) for t in given):
        if images is not None:
            raise PromptError("A RawPrompt brings its own pictures: leave images= out.")
        raws = [t if isinstance(t, RawPrompt) else RawPrompt(t) for t in given]
        return [r.text for r in raws], [list(r.images) for r in raws]
    return given, _pictures_by_row(given, images)


def _pictures_by_row(texts: Sequence[str], images: Any) -> list[list[Image.Image]]:
    """The pictures of each text, from a flat list (in reading order) or one list a text."""
    counts = [t.count(IMAGE) for t in texts]
    if images is None:
        images = []
    elif isinstance(images, list | tuple):
        images = list(images)
    else:
        images = [images]
    nested = bool(images) and all(isinstance(i, list | tuple) for i in images)
    if nested:
        if len(images) != len(texts):
            raise PromptError(
                f"There are {len(texts)} texts and {len(images)} lists of pictures: give one list "
                "a text."
            )
        rows = [[as_picture(p) for p in row] for row in images]
    else:
        flat = [as_picture(p) for p in images]
        if len(flat) != sum(counts):
            raise PromptError(_mismatch(sum(counts), len(flat)))
        rest = iter(flat)
        rows = [[next(rest) for _ in range(n)] for n in counts]
    for row, (count, mine) in enumerate(zip(counts, rows, strict=True)):
        if count != len(mine):
            where = f"Text {row} of the batch: " if len(texts) > 1 else ""
            raise PromptError(where + _mismatch(count, len(mine)))
    return rows


def _mismatch(placeholders: int, pictures: int) -> str:
    return (
        f"The text has {placeholders} <image> placeholder{'s' * (placeholders != 1)} and "
        f"{pictures} picture{'s' * (pictures != 1)} {'was' if pictures == 1 else 'were'} given: "
        "write one <image> for each picture."
    )
