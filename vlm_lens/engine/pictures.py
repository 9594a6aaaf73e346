"""What pictures become in the text, computed for some of a prompt's pictures by the model itself.

A picture's features stand in the text as the model's own `get_image_features` gives them, and in
most families one picture's do not depend on another's. So they can be computed for one picture
alone, for the same one under many variants, or once for all prompts that show it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import VLMLensError
from vlm_lens.families import Architecture, Family
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.points.placement import together


class NotSeparable(VLMLensError):
    """Pictures whose features cannot be computed apart from the rest of their prompt."""


@dataclass(frozen=True)
class ShownPicture:
    """One picture of a prompt.

    Attributes:
        row: The row of the prompt that shows it.
        positions: The positions of that row that hold its features.
        layout: It in text, tower and projector.
    """

    row: int
    positions: tuple[int, ...]
    layout: ImageLayout


class Pictures:
    """The pictures of a prompt, and a way to compute features of some of them.

    Args:
        model: The Hugging Face model.
        family: Its family.
        arch: Its parts.
        inputs: The prompt's tensors.
        layouts: The layouts of its rows.

    Attributes:
        form: The shape of what the model gives for pictures, `None` where it gives a list of them.

    Raises:
        NotSeparable: The family does not say how, or the model has no function for it.
    """

    form: torch.Size | None = None

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        layouts: Sequence[Layout],
    ):
        if family.not_separable:
            raise NotSeparable(family.not_separable)
        self.shown = [
            ShownPicture(
                row,
                _of_features(inputs["input_ids"][row], arch.image_token_id, picture),
                picture,
            )
            for row, layout in enumerate(layouts)
            for picture in layout.images
        ]
        self.packed = family.packs_pictures(model.config)
        inner = getattr(model, "model", model)
        self._run = getattr(inner, "get_image_features", None) or getattr(
            model, "get_image_features", None
        )
        if self._run is None:
            raise NotSeparable("the model has no get_image_features")
        accepted = inspect.signature(self._run).parameters
        self._tensors = {k: v for k, v in inputs.items() if k in accepted}
        self._family = family

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def names(self) -> tuple[str, ...]:
        """Which of the prompt's tensors the features are made of."""
        return tuple(self._tensors)

    def tensors(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What the model reads some of the pictures from.

        Raises:
            NotSeparable: The tensors of this prompt cannot be taken apart.
        """
        layouts = [p.layout for p in self.shown]
        found = self._family.select_pictures(self._tensors, layouts, numbers)
        if found is None:
            raise NotSeparable("the tensors of these pictures cannot be taken apart")
        return found

    @torch.no_grad()
    def features(self, numbers: Sequence[int]) -> list[Tensor]:
        """What some of the pictures become, in order; one may be wanted more than once.

        Returns:
            For each, `[streams, positions, d_model]`: what stands in the text, then what the model
            adds after its first blocks, if it does (DeepStack).

        Raises:
            NotSeparable: The model gives something else.
        """
        out = self._run(**self.tensors(numbers), return_dict=True)
        pooled = getattr(out, "pooler_output", None)
        self.form = pooled.shape if isinstance(pooled, Tensor) else None
        streams = [pooled if pooled is not None else out.last_hidden_state]
        streams += getattr(out, "deepstack_features", None) or []
        flat = torch.stack(together(_flat(s) for s in streams))
        lengths = [len(self.shown[n].positions) for n in numbers]
        if flat.shape[1] != sum(lengths):
            raise NotSeparable(
                "the model gives another number of features than the text has positions"
            )
        return list(flat.split(lengths, dim=1))

    @staticmethod
    def as_output(features: Sequence[Tensor], form: torch.Size | None) -> Any:
        """Features of all pictures as the model takes them in `mm_encoder_outputs`.

        Args:
            features: Those of each picture, as `features` gives them.
            form: The attribute `form` after a call of `features`.
        """
        whole = torch.cat(list(features), 1)
        pieces = [f[0] for f in features]
        return SimpleNamespace(
            pooler_output=pieces if form is None else whole[0].view(-1, *form[1:]),
            last_hidden_state=whole[0],
            deepstack_features=[[f[i] for f in features] for i in range(1, len(whole))],
            qformer_outputs=None,
            vision_outputs=None,
        )


def _of_features(ids: Tensor, image_token: int | None, picture: ImageLayout) -> tuple[int, ...]:
    """The positions of a picture that hold features, not marks around or between them."""
    tokens = ids.tolist()
    return tuple(p for p in sorted(picture.positions) if tokens[p] == image_token)


def _flat(features: Any) -> Tensor:
    whole = features if isinstance(features, Tensor) else torch.cat(
        [f.reshape(-1, f.shape[-1]) for f in features]
    )  # fmt: skip
    return whole.reshape(-1, whole.shape[-1])
