"""What a model reads: tensors, with the coordinates of every position."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError, UnknownAttributeError, near_matches
from vlm_lens.families.parts.batch import GivenVideo
from vlm_lens.layout.layout import Layout
from vlm_lens.points.config import HookedConfig

_HABITS = {
    "tokens": ": prompt.inputs['input_ids'] are the ids, prompt.layout.strings the strings.",
    "str_tokens": ": it is prompt.layout.strings.",
    "text": ": it is prompt.texts[row].",
    "image": ": it is prompt.images[row][number].",
    "shape": ": prompt.length is its number of positions, len(prompt) that of rows.",
    "to": ": its tensors are moved to the model when it runs.",
}  # what users of transformers and TransformerLens type


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model reads, one row or a left-padded batch, and where everything stands in it.

    Attributes:
        inputs: The tensors, by the names of the model's own forward.
        layouts: The layout of each row.
        texts: The text of each row, where known.
        images: The pictures of each row, where known.
        videos: What is known of each video, in reading order.
        made_for: The sizes of the model that it was made for.
    """

    inputs: dict[str, Tensor]
    layouts: tuple[Layout, ...]
    texts: tuple[str, ...] = ()
    images: tuple[tuple[Image.Image, ...], ...] = ()
    videos: tuple[GivenVideo, ...] = ()
    made_for: HookedConfig | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.layouts)

    def __getitem__(self, name: str) -> Tensor:
        """One of the tensors.

        Raises:
            PromptError: There is none of that name.
        """
        if isinstance(name, str) and name in self.inputs:
            return self.inputs[name]
        raise PromptError(
            f"A prompt gives its tensors by name, and has none named {name!r}: it has "
            f"{', '.join(self.inputs)}. Of a row there is prompt.layouts[row]; to run a row alone, "
            "make a prompt of it."
        )

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or "inputs" not in self.__dict__:
                raise AttributeError(name)  # it is being copied or unpickled
            known = [n for n in dir(type(self)) if not n.startswith("_")]
            known += list(self.__dataclass_fields__)
            hint = _HABITS.get(name) or near_matches(name, known)
            hint = f": it is prompt.inputs[{name!r}]." if name in self.inputs else hint
            raise UnknownAttributeError(f"A Prompt has no {name!r}{hint}")

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
        """Positions of the padded rows; of an encoder-decoder, those of the decoder."""
        ids = self.inputs.get("decoder_input_ids")
        return (self.inputs["input_ids"] if ids is None else ids).shape[1]

    def of_rows_alone(self) -> Prompt:
        """The same, its rows prompts of their own that were padded to run together."""
        return replace(self, layouts=tuple(layout.by_itself() for layout in self.layouts))

    def __repr__(self) -> str:
        rows = [f"  {layout!r}" for layout in self.layouts[:4]]
        more = [f"  ... and {len(self) - 4} more rows"] if len(self) > 4 else []
        sizes = ", ".join(f"{k} {list(v.shape)}" for k, v in self.inputs.items())
        return "\n".join([f"Prompt({sizes})", *rows, *more])

    def _repr_html_(self) -> str:
        from vlm_lens.figures.prompt_view import prompt_html

        return prompt_html(self)
