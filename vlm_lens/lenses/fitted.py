"""What lenses with fitted linear maps share: one map a point and group of positions, on files.

```
T h = W h + b  (+ h, where the map is a residual one)       point x group -> W [d, d], b [d]
```

Groups are `"all"`, or `"image"` and `"text"` apart (special tokens count as text).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.interventions.origin import check_same_model
from vlm_lens.layout.kinds import PAD, Kind
from vlm_lens.layout.layout import Layout
from vlm_lens.lenses.base import LensError
from vlm_lens.lenses.logit_lens import VocabularyLens
from vlm_lens.reading.many import content_of
from vlm_lens.serial import FrozenTensor, Savable
from vlm_lens.storage.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

WHOLE, IMAGE, TEXT = "all", "image", "text"


def group_of(kind: str, kinds: str | None) -> str:
    """The group whose map a position of some kind gets."""
    if kinds is None:
        return WHOLE
    return IMAGE if Kind(kind).medium else TEXT  # frames are pictures


def groups(kinds: str | None) -> tuple[str, ...]:
    """The groups that there are.

    Raises:
        LensError: Another `kinds`.
    """
    if kinds not in (None, "each"):
        raise LensError(f"kinds is None (one map a layer) or 'each' (by kind), not {kinds!r}.")
    return (WHOLE,) if kinds is None else (TEXT, IMAGE)


def positions_read(layout: Layout) -> list[int]:
    """All positions that are not padding."""
    return [p for p, kind in enumerate(layout.kinds) if kind != PAD]


def fit_folder(
    folder: str | Path | None, vlm: HookedModel, prompts: Sequence[Any], holds: str, **asked: Any
) -> AbstractContextManager:
    """The folder of one fit, which a killed process can go on with; nothing where none is asked.

    Args:
        folder: The folder.
        vlm: The model.
        prompts: The prompts it is fitted on.
        holds: What the folder holds, for messages.
        **asked: All else that the numbers depend on, by name.
    """
    if folder is None:
        return nullcontext()
    identity = run_identity(vlm, prompts=[content_of(p) for p in prompts], **asked)
    return RunFolder(folder, identity, holds=holds, error=LensError)


@dataclass(frozen=True)
class FittedLens(VocabularyLens, Savable):
    """A lens with maps that were fitted on a model.

    `dataclasses.replace(lens, at=Last(), k=3)` gives the same lens on other positions;
    `lens.save("stem")` writes JSON and safetensors, `type(lens).load("stem")` reads them.

    Attributes:
        weights: `"point/group"` -> the matrix, `[d_model, d_model]`.
        biases: Likewise the vector; empty where there is none.
        source: The model that it was fitted on.
        kinds: `None` for one map a point, `"each"` for one a kind of position.
        about: How it was fitted.
        allow_transfer: Lets it be used on a model with other weights behind the same output layer,
            such as a language model's lens on the vision-language model that was made from it.
    """

    weights: dict[str, FrozenTensor] = field(kw_only=True, repr=False, hash=False)
    biases: dict[str, FrozenTensor] = field(
        kw_only=True, repr=False, hash=False, default_factory=dict
    )
    source: ModelFacts = field(kw_only=True)
    kinds: str | None = field(kw_only=True, default=None)
    about: dict[str, Any] = field(kw_only=True, repr=False, hash=False, default_factory=dict)
    allow_transfer: bool = field(kw_only=True, default=False)

    residual: ClassVar[bool] = False  # whether the state itself is added to what the map gives

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are read.

        Raises:
            LensError: The lens was fitted on another model, or not at such a point.
            PointError: A point is not as wide as the residual stream.
        """
        names = super().names(vlm)
        self._check_model(vlm)
        last = vlm.architecture.points.match(["blocks.*.hook_resid_post"])[-1]
        known = {key.rsplit("/", 1)[0] for key in self.weights} | {last}
        unfitted = [name for name in names if name not in known]
        if unfitted:
            raise LensError(
                f"This {self.name} was not fitted at {unfitted[0]}; it was at "
                f"{', '.join(sorted(known - {last}))}."
            )
        return names

    def _check_model(self, vlm: HookedModel) -> None:
        mine, theirs = self.source, vlm.facts
        if mine.d_model != theirs.d_model or mine.n_layers != theirs.n_layers:
            raise LensError(
                f"This {self.name} was fitted on {mine.name}, {mine.n_layers} blocks of width "
                f"{mine.d_model}; {theirs.name} has {theirs.n_layers} of width {theirs.d_model}."
            )
        hashes = mine.unembed_hash, theirs.unembed_hash
        if all(hashes) and hashes[0] != hashes[1]:
            raise LensError(
                f"This {self.name} was fitted on {mine.name}, and the output layer of "
                f"{theirs.name} is another one: what its maps aim at means something else there."
            )
        if not self.allow_transfer:
            try:
                check_same_model(mine, theirs, self.name)
            except VectorError as error:
                raise LensError(str(error)) from None

    def transform(
        self, states: Float[Tensor, "positions d_model"], point: str, kinds: Sequence[str]
    ) -> Float[Tensor, "positions d_model"]:
        """States mapped into the last layer's space; those of the last layer stay as they are.

        Raises:
            LensError: It was fitted by kind of position, and saw none of a kind that is here.
        """
        if not any(key.startswith(f"{point}/") for key in self.weights):
            return states
        mapped = torch.empty_like(states)
        of = [group_of(kind, self.kinds) for kind in kinds]
        for group in dict.fromkeys(of):
            key = f"{point}/{group}"
            if key not in self.weights:
                raise LensError(
                    f"This {self.name} was fitted on prompts without positions of kind {group!r}, "
                    "and there are such here: fit it on prompts that have them, or with kinds=None."
                )
            index = [i for i, one in enumerate(of) if one == group]
            chosen = states[index].float()
            weight = self.weights[key].data.to(chosen)
            given = chosen @ weight.T
            if key in self.biases:
                given = given + self.biases[key].data.to(chosen)
            if self.residual:
                given = given + chosen
            mapped[index] = given.to(states.dtype)
        return mapped

    @property
    def report(self) -> pd.DataFrame:
        """What `about` says by layer and kind of position, as a table; see the lens's `fit`."""
        import pandas as pd

        return pd.DataFrame(self.about.get("report", ()))


__all__ = ["FittedLens", "fit_folder", "group_of", "groups", "positions_read"]
