"""Text and pictures as tensors, with the coordinates of every position."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families import Architecture, Family, PictureBatch
from vlm_lens.layout.layout import PAD, SPECIAL, TEXT, Layout
from vlm_lens.points.config import HookedConfig
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tokens import string_tokens, tokenizer_of

IMAGE = "<image>"


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model reads, one row or a left-padded batch, and where everything stands in it.

    Attributes:
        inputs: The tensors, by the names of the model's own forward.
        layouts: The layout of each row.
        texts: The text of each row, where known.
        images: The pictures of each row, where known.
        made_for: The sizes of the model that it was made for.
    """

    inputs: dict[str, Tensor]
    layouts: tuple[Layout, ...]
    texts: tuple[str, ...] = ()
    images: tuple[tuple[Image.Image, ...], ...] = ()
    made_for: HookedConfig | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.layouts)

    @property
    def layout(self) -> Layout:
        """The layout of the only row.

        Raises:
            PromptError: A batch; take `prompt.layouts[row]`.
        """
        if len(self.layouts) != 1:
            raise PromptError(
                f"This prompt is a batch of {len(self)} rows: take prompt.layouts[row]."
            )
        return self.layouts[0]

    @property
    def length(self) -> int:
        """Positions of the padded rows."""
        return self.inputs["input_ids"].shape[1]

    def __repr__(self) -> str:
        rows = [f"  {layout!r}" for layout in self.layouts[:4]]
        more = [f"  ... and {len(self) - 4} more rows"] if len(self) > 4 else []
        sizes = ", ".join(f"{k} {list(v.shape)}" for k, v in self.inputs.items())
        return "\n".join([f"Prompt({sizes})", *rows, *more])

    def _repr_html_(self) -> str:
        from vlm_lens.figures.prompt_view import prompt_html

        return prompt_html(self)


def from_text(
    text: str | Sequence[str],
    images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | Image.Image | None,
    *,
    family: Family,
    arch: Architecture,
    model: torch.nn.Module,
    processor: Any,
    device: torch.device,
    add_special_tokens: bool = True,
) -> Prompt:
    """Runs the processor; see `HookedVLM.prompt`."""
    if processor is None:
        raise PromptError(
            "This HookedVLM has no processor, so it cannot read text: give one, "
            "HookedVLM(model, processor), or pass a processor's own output."
        )
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(t, str) for t in texts):
        raise PromptError("A prompt is a text or a list of texts; it got " + repr(text)[:80] + ".")
    if not family.takes_images and (isinstance(images, Image.Image) or any(images or ())):
        family.placeholder(processor)
    rows = _pictures_by_row(texts, images)
    flat = [picture for row in rows for picture in row]
    placeholder = family.placeholder(processor) if flat else IMAGE
    written = [t.replace(IMAGE, placeholder) for t in texts]
    options: dict[str, Any] = {"return_tensors": "pt"}
    if len(texts) > 1:
        if getattr(tokenizer_of(processor), "pad_token", None) is None:
            raise PromptError(
                "A batch is padded, and this tokenizer has no padding token: set one, "
                "vlm.tokenizer.pad_token = vlm.tokenizer.eos_token, or run the texts one by one."
            )
        options |= {"padding": True, "padding_side": "left"}
    if not add_special_tokens:
        options["add_special_tokens"] = False
    if flat:
        inputs = family.process(processor, written, [[_rgb(p) for p in r] for r in rows], **options)
    else:
        inputs = family.tokenize(processor, written, **options)
    sizes = [p.size for p in flat] or None
    return from_tensors(
        dict(inputs), family=family, arch=arch, model=model, processor=processor, device=device,
        sizes=sizes, texts=tuple(texts), images=tuple(tuple(r) for r in rows),
    )  # fmt: skip


def from_tensors(
    inputs: Mapping[str, Any],
    *,
    family: Family,
    arch: Architecture,
    model: torch.nn.Module,
    processor: Any,
    device: torch.device,
    sizes: Sequence[tuple[int, int]] | None = None,
    texts: tuple[str, ...] = (),
    images: tuple[tuple[Image.Image, ...], ...] = (),
) -> Prompt:
    """A processor's output, checked and given its layouts."""
    if "input_ids" not in inputs:
        raise PromptError(
            f"A processor's output holds 'input_ids'; this mapping holds {sorted(inputs)}."
        )
    tensors = {k: torch.as_tensor(v).to(device) for k, v in inputs.items() if v is not None}
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        tensors.pop("token_type_ids", None)  # some tokenizers make them for every model
    ids = tensors["input_ids"]
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise PromptError(f"input_ids must be [batch, pos], not {list(ids.shape)}.")
    # some models embed more tokens than they can say
    d_vocab = max(arch.cfg.d_vocab, model.get_input_embeddings().weight.shape[0])
    if int(ids.max()) >= d_vocab or int(ids.min()) < 0:
        raise PromptError(
            f"A token id lies outside the model's vocabulary of {d_vocab} (found "
            f"{int(ids.min())}..{int(ids.max())}): is this the processor of another model?"
        )
    pictures = family.image_layouts(PictureBatch(model, arch, tensors, processor, sizes))
    tokenizer = tokenizer_of(processor)
    layouts = tuple(
        _layout(row, ids[row], _mask(tensors, row), pictures[row], tokenizer)
        for row in range(len(ids))
    )
    return Prompt(tensors, layouts, texts, images, arch.cfg)


def _layout(row: int, ids: Tensor, mask: Tensor, pictures: Sequence, tokenizer: Any) -> Layout:
    special = set(getattr(tokenizer, "all_special_ids", ()) or ())
    kinds = [SPECIAL if int(i) in special else TEXT for i in ids]
    for picture in pictures:
        for position in picture.positions:
            kinds[position] = f"image {picture.index}"
    kinds = [k if m else PAD for k, m in zip(kinds, mask.tolist(), strict=True)]
    token_ids = tuple(ids.tolist())
    return Layout(
        token_ids, string_tokens(tokenizer, token_ids), tuple(kinds), row, tuple(pictures)
    )


def _mask(tensors: Mapping[str, Tensor], row: int) -> Tensor:
    mask = tensors.get("attention_mask")
    return torch.ones_like(tensors["input_ids"][row]) if mask is None else mask[row]


def _pictures_by_row(texts: Sequence[str], images: Any) -> list[list[Image.Image]]:
    """The pictures of each text, from a flat list (in reading order) or one list a text."""
    counts = [t.count(IMAGE) for t in texts]
    if isinstance(images, Image.Image | str | Path):
        images = [images]
    images = list(images or ())
    nested = bool(images) and all(isinstance(i, list | tuple) for i in images)
    if nested and len(images) != len(texts):
        raise PromptError(
            f"There are {len(texts)} texts and {len(images)} lists of pictures: give one list "
            "a text."
        )
    for picture in (p for row in images for p in (row if nested else [row])):
        if not isinstance(picture, Image.Image):
            raise PromptError(
                f"A picture is a PIL image, not {type(picture).__name__}: open it with "
                "PIL.Image.open(path)."
            )
    if not nested:
        if len(images) != sum(counts):
            raise PromptError(_mismatch(sum(counts), len(images)))
        flat, images = iter(images), []
        images = [[next(flat) for _ in range(n)] for n in counts]
    for row, (count, mine) in enumerate(zip(counts, images, strict=True)):
        if count != len(mine):
            where = f"Text {row} of the batch: " if len(texts) > 1 else ""
            raise PromptError(where + _mismatch(count, len(mine)))
    return [list(row) for row in images]


def _mismatch(placeholders: int, pictures: int) -> str:
    return (
        f"The text has {placeholders} <image> placeholder{'s' * (placeholders != 1)} and "
        f"{pictures} picture{'s' * (pictures != 1)} {'was' if pictures == 1 else 'were'} given: "
        "write one <image> for each picture."
    )


def _rgb(picture: Image.Image) -> Image.Image:
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def as_raw(prompt: Any, images: Any) -> tuple[Any, Any]:
    """Splits what a user may give into text(s) and pictures: RawPrompts, texts, lists of them."""
    if isinstance(prompt, RawPrompt):
        if images is not None:
            raise PromptError("A RawPrompt brings its own pictures: leave images= out.")
        return prompt.text, list(prompt.images)
    if isinstance(prompt, list | tuple) and any(isinstance(p, RawPrompt) for p in prompt):
        if images is not None:
            raise PromptError("RawPrompts bring their own pictures: leave images= out.")
        raws = [p if isinstance(p, RawPrompt) else RawPrompt(p) for p in prompt]
        return [r.text for r in raws], [list(r.images) for r in raws]
    return prompt, images


def from_chat(
    messages: Sequence[Mapping[str, Any]], processor: Any, *, add_generation_prompt: bool = True
) -> tuple[str, list[Image.Image]]:
    """Messages as text by the processor's chat template, and the pictures that they hold.

    Raises:
        PromptError: The processor has no chat template.
    """
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer_of(processor), "chat_template", None
    )
    if not template:
        raise PromptError(
            "This model's processor has no chat template: write the prompt out and use vlm.prompt."
        )
    pictures, stripped = [], []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [dict(part) for part in content]
            for part in content:
                if part.get("type") == "image" and isinstance(part.get("image"), Image.Image):
                    pictures.append(part.pop("image"))
        stripped.append({**message, "content": content})
    text = processor.apply_chat_template(
        stripped, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return text, pictures


def warn_if_training(model: torch.nn.Module) -> None:
    """Dropout makes every run different: says so once for a model left in training mode."""
    if model.training and any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules()):
        warnings.warn(
            "The model is in training mode and has dropout: call model.eval() for repeatable runs.",
            stacklevel=3,
        )
