"""The tower's own lens: patches against labels, through the text encoder it was trained with.

```
CLIP     cos(W_v norm(h), text(label))                       the class token's head, at a patch
SigLIP   cos(head(norm(h)), text(label))                     the pooling head, a patch alone
```

A CLIP or SigLIP tower was trained beside a text encoder; where that is at hand, a label in words is
a direction, and each patch of each block can be set against it (Zhou et al. 2022, arXiv 2112.01071,
for the last block; Gandelsman et al. 2024, arXiv 2310.05916).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vlm_lens.errors import PointError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import freeze_points
from vlm_lens.keywords import answering
from vlm_lens.lenses.base import Lens, LensError, Reading, States, ranked
from vlm_lens.lenses.embedding_lens import unit
from vlm_lens.tokens import tokenizer_of

_KINDS = ("clip", "siglip")
_HEAD = ("post_layernorm.", "head.")  # what a vision-language model's tower may lack


@dataclass(frozen=True)
class TowerLens(Lens):
    """Compares the tower's states with labels in words, by cosine.

    Make it with `TowerLens.from_pretrained`. Chosen `tokens` are labels here, by text or number.

    Attributes:
        words: The labels.
        directions: Their text embeddings, of length 1, `[labels, d]`.
        encoder: The vision part of the model that has the text encoder.
        projection: What follows it, `None` in SigLIP.
    """

    points: str | tuple[str, ...] = "vision.blocks.*.hook_resid_post"
    words: tuple[str, ...] = field(kw_only=True)
    directions: Tensor = field(kw_only=True, repr=False, compare=False)
    encoder: nn.Module = field(kw_only=True, repr=False, compare=False)
    projection: nn.Module | None = field(kw_only=True, repr=False, compare=False)

    measure: ClassVar[str] = "cosine similarity"
    title: ClassVar[str] = "Which label each state of the tower is nearest to"
    space: ClassVar[str] = "vision"

    @classmethod
    @torch.no_grad()
    @answering
    def from_pretrained(
        cls,
        vlm: HookedModel,
        name: str | Path,
        labels: Sequence[str],
        *,
        template: str = "a photo of a {}",
        allow_transfer: bool = False,
        **options: Any,
    ) -> Self:
        """Reads a CLIP or SigLIP model and embeds labels.

        Args:
            vlm: The vision-language model whose tower it is.
            name: A folder or Hub id of the whole model, such as
                `"openai/clip-vit-large-patch14-336"` for LLaVA 1.5.
            labels: What patches are set against.
            template: The sentence in which a label stands.
            allow_transfer: Lets a tower be read that was trained on since, and so has other
                weights.
            **options: Passed to transformers: `revision`, `dtype`, ...

        Raises:
            LensError: No labels, a model without text encoder, or another tower.
        """
        words = tuple(labels)
        if isinstance(labels, str) or not words or "{}" not in template:
            raise LensError("labels is a list of words, and template a sentence with {} in it.")
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            kind = AutoConfig.from_pretrained(name, **options).model_type
        except (OSError, ValueError) as error:
            raise LensError(f"No model could be read from {name}: {error}") from None
        if kind not in _KINDS:
            raise LensError(
                f"{name} is of type {kind!r}; a tower's own lens needs one with a text encoder: "
                f"{', '.join(_KINDS)}."
            )
        model = AutoModel.from_pretrained(name, **options).to(vlm.device).eval()
        if not allow_transfer:
            _check_tower(vlm, model.vision_model, str(name))
        tokenizer = tokenizer_of(AutoTokenizer.from_pretrained(name, **options))
        length = model.config.text_config.max_position_embeddings
        inputs = tokenizer(
            [template.format(word) for word in words], return_tensors="pt", truncation=True,
            padding="max_length" if kind == "siglip" else True, max_length=length,
        ).to(vlm.device)  # fmt: skip
        asked = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        if kind == "siglip":  # trained on padded texts, all of which it reads
            asked.pop("attention_mask", None)
        directions = unit(model.get_text_features(**asked).pooler_output)
        return cls(
            words=words, directions=directions, encoder=model.vision_model,
            projection=getattr(model, "visual_projection", None),
        )  # fmt: skip

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are read.

        Raises:
            PointError: One that is not as wide as the tower's residual stream.
        """
        table = vlm.architecture.points
        names = table.match(list(freeze_points(self.points)))
        width = self.encoder.post_layernorm.weight.shape
        for name in names:
            if table[name].space != "vision" or table[name].sizes[2:] != tuple(width):
                raise PointError(
                    f"{name} has shape {table[name].shape}; this lens reads the tower's residual "
                    f"stream, [image, patch, {width[0]}]."
                )
        return names

    def token_ids(self, vlm: HookedModel) -> list[int]:
        """The numbers of the chosen labels.

        Raises:
            LensError: No such label.
        """
        found = []
        for one in self.tokens:
            if one not in self.words and one not in range(len(self.words)):
                raise LensError(f"{one!r} is none of the labels: {', '.join(self.words)}.")
            found.append(self.words.index(one) if isinstance(one, str) else int(one))
        return found

    def labels(self, vlm: HookedModel, ids: set[int]) -> dict[int, str]:
        """The labels."""
        return {i: self.words[i] for i in ids}

    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """The nearest labels."""
        dtype = self.encoder.post_layernorm.weight.dtype
        normed = self.encoder.post_layernorm(states.values.to(dtype))
        if self.projection is not None:
            mine = self.projection(normed)
        else:
            mine = self.encoder.head(normed[:, None])  # it pools over a sequence of one
        return ranked(unit(mine) @ self.directions.T, self.k, tokens)


def _check_tower(vlm: HookedModel, encoder: nn.Module, name: str) -> None:
    """Refuses an encoder whose weights are not the tower's."""
    own = vlm.hf_model.state_dict()
    vision = [key for key in own if "vision" in key]
    for key, weight in encoder.state_dict().items():
        if key.startswith(_HEAD) or not weight.is_floating_point():
            continue
        found = [k for k in vision if k.endswith(f".{key}")]
        if not found and ".layers." in key:  # a block that the model leaves out
            continue
        mine = own[found[0]] if found else None
        if mine is not None and mine.device.type == "meta":
            continue
        if mine is None or mine.shape != weight.shape or not _alike(mine, weight):
            raise LensError(
                f"The tower of {vlm.name} is not that of {name}: {key} differs. It may have been "
                "trained on; if it is meant all the same, write allow_transfer=True."
            )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two weights are the same but for rounding."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    return bool((a - b).abs().max() <= 1e-2 * b.abs().max())


__all__ = ["TowerLens"]
