"""Directions: what sets one set of prompts apart from another, at each layer.

```
mean      v = mean(positive) - mean(negative)
pca       u = first principal component of the pairs' differences (uncentred; without pairs, of all
              states around the mean of both means);      v = (u . (mean+ - mean-)) u
logistic  u = weight of a logistic regression, in the units of the state;      v likewise
```

Each `v` points from the negative to the positive set, and is as long as the means are apart along
it, so that the sign of a component or of a fit cannot turn it around. CAA (Rimsky et al. 2024,
arXiv 2312.06681) takes means; VTI (Liu et al. 2024, arXiv 2410.15778) the first component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import Last, Position, as_position
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.reading.many import text_of
from vlm_lens.reading.pooled import points_by_layer, pooled_states
from vlm_lens.reading.vectors import LayerVectors
from vlm_lens.scores.places import sequence
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.serial import FrozenTensor, Savable, savable

METHODS = ("mean", "pca", "logistic")


@savable
@dataclass(frozen=True)
class Direction(LayerVectors, Savable):
    """A direction at each layer, usable wherever a TaskVector is: Steer, Remove, Project, ...

    Attributes:
        data: `[layers, d]`.
        kind: Which point: `resid_post`.
        source: The model that it was read on.
        at: Where in the prompts.
        method: `"mean"`, `"pca"` or `"logistic"`.
        stream_norm: The mean length of the states themselves, one a layer.
        separation: For each layer, the probability that a positive prompt lies further along the
            direction than a negative one (AUC); on prompts it was not fitted on, `holdout` of them;
            empty where none is held out, which takes three prompts in a set.
        positive: The texts of the positive prompts.
        negative: Those of the negative.
        note: What was done to it since.
    """

    data: FrozenTensor
    kind: str
    source: ModelFacts
    at: Position
    method: str
    stream_norm: tuple[float, ...] = field(repr=False)
    separation: tuple[float, ...] = field(repr=False)
    positive: tuple[str, ...] = field(default=(), repr=False)
    negative: tuple[str, ...] = field(default=(), repr=False)
    note: str = ""

    @classmethod
    @answering
    def fit(
        cls,
        vlm: HookedModel,
        positive: Sequence[Any],
        negative: Sequence[Any],
        *,
        at: Position | int | None = None,
        method: str = "mean",
        points: str = "blocks.*.hook_resid_post",
        holdout: float = 0.25,
        batch_size: int = 16,
    ) -> Self:
        """Finds what sets positive prompts apart from negative ones.

        Args:
            vlm: The model.
            positive: Texts, RawPrompts or Prompts; pictures alone may differ.
            negative: Likewise; as many, pair by pair, for pairs of `"pca"`.
            at: Where, averaged over places; the last position by default.
            method: `"mean"`, `"pca"` or `"logistic"`.
            points: Which point of each block.
            holdout: Which part of the prompts is left for `separation`; the vector itself is
                fitted on all.
            batch_size: Prompts that run together at the most.

        Raises:
            VectorError: Fewer than two prompts in a set, another method, or points that a vector
                cannot hold.
        """
        if method not in METHODS:
            raise VectorError(f"method is one of {', '.join(METHODS)}, not {method!r}.")
        positive, negative = list(positive), list(negative)
        if min(len(positive), len(negative)) < 2:
            raise VectorError("A direction needs at least two positive and two negative prompts.")
        if not 0 <= holdout < 1:
            raise VectorError(f"holdout is a share of the prompts below 1, not {holdout}.")
        layers = [point.layer for point in points_by_layer(vlm, points)]
        if layers not in ([None], list(range(len(layers)))):
            raise VectorError(f"{points!r} selects layers {layers}; a direction holds all from 0.")
        place = as_position(Last() if at is None else at)
        read = [
            pooled_states(vlm, some, {"at": place}, points=points, batch_size=batch_size)["at"]
            for some in (positive, negative)
        ]
        pos, neg = (states.double() for states in read)
        values = torch.stack([_direction(pos[:, i], neg[:, i], method) for i in range(len(layers))])
        norms = torch.cat([pos, neg]).norm(dim=-1).mean(0)
        tested = range(len(layers)) if holdout and min(len(pos), len(neg)) > 2 else ()
        return cls(
            FrozenTensor(values.to(read[0].dtype)),
            points_by_layer(vlm, points)[0].kind,
            vlm.facts,
            place,
            method,
            tuple(norms.tolist()),
            tuple(_held_out(pos[:, i], neg[:, i], method, holdout) for i in tested),
            tuple(map(text_of, positive)),
            tuple(map(text_of, negative)),
        )

    @cached_property
    def values(self) -> Tensor:
        """`[layers, d]`."""
        return self.data.data

    def origins(self) -> list[ModelFacts]:
        """The model that it was read on."""
        return [self.source]

    @property
    def relative_norm(self) -> Float[Tensor, " layers"]:
        """Its length at each layer, in units of the states' mean length there."""
        return self.norm() / torch.tensor(self.stream_norm)

    def unit(self) -> Self:
        """The same direction, of length 1 at each layer."""
        lengths = self.norm().clamp(min=1e-12)[:, None]
        return self._scaled(1 / lengths, "unit length")

    def of_stream(self, share: float = 1.0) -> Self:
        """The same direction, at each layer as long as a share of the states there.

        A vector of one length means little in one layer and much in another, whose states are
        shorter: steer by shares.
        """
        target = share * torch.tensor(self.stream_norm)[:, None]
        return self._scaled(
            target / self.norm().clamp(min=1e-12)[:, None], f"{share} of the stream"
        )

    def __mul__(self, factor: float) -> Self:
        return self._scaled(torch.tensor(float(factor)), f"times {factor}")

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def _scaled(self, by: Tensor, note: str) -> Self:
        values = FrozenTensor((self.values.float() * by).to(self.values.dtype))
        return replace(self, data=values, note=f"{self.note}, {note}".lstrip(", "))

    @answering
    def scores(self, vlm: HookedModel, prompt: Any, images: Any = None) -> Scores:
        """How far each position of a prompt lies along the direction, at each layer.

        Returns:
            Scores by `layer` and `position`: `h . v / |v|`, in the units of the state.

        Raises:
            VLMLensError: Another model, or a batch of several rows.
        """
        made: Prompt = vlm.as_prompt(prompt, images)
        if len(made) != 1:
            raise VectorError(f"One prompt at a time; this is a batch of {len(made)} rows.")
        table = vlm.architecture.points
        points = [p for p in table.values() if p.kind == self.kind]
        units = {p.name: self.unit().value_at(p, vlm.facts) for p in points}
        _, cache = vlm.run_with_cache(made, names_filter=list(units), last_logits=1)
        pairs = sequence(made.layout, points[0].space)
        rows, positions = torch.tensor(pairs).T
        values = torch.stack(
            [cache[n][rows, positions].flatten(1).float().cpu() @ v.flatten().float()
             for n, v in units.items()]
        )  # fmt: skip
        return scores(
            values.numpy(),
            {"layer": [p.layer or 0 for p in points], "position": [p for _, p in pairs]},
            None if points[0].space == "text" else [r for r, _ in pairs],
            name="along the direction", layout=made.layout,
            pictures=made.images[0] if made.images else (), space=points[0].space,
            about={"model": vlm.name, "method": self.method},
        )  # fmt: skip

    def __repr__(self) -> str:
        parts = [
            f"{len(self.values)} layers of {self.values.shape[-1]} at {self.kind}",
            f"{self.method} of {len(self.positive)} against {len(self.negative)} prompts",
            f"read on {self.source.name} at {self.at!r}",
        ]
        if self.separation:
            best = int(np.argmax(self.separation))
            parts.append(f"tells them apart best at layer {best} (AUC {self.separation[best]:.2f})")
        return f"Direction({'; '.join([*parts, *([self.note] if self.note else [])])})"


def _direction(pos: Tensor, neg: Tensor, method: str) -> Tensor:
    """The direction of one layer; see the module."""
    apart = pos.mean(0) - neg.mean(0)
    if method == "mean":
        return apart
    if method == "pca":
        paired = len(pos) == len(neg)
        middle = (pos.mean(0) + neg.mean(0)) / 2
        x = pos - neg if paired else torch.cat([pos, neg]) - middle
        along = torch.linalg.svd(x, full_matrices=False).Vh[0]
    else:
        along = _logistic(pos, neg)
    along = along / along.norm().clamp(min=1e-12)
    return (along @ apart) * along


def _logistic(pos: Tensor, neg: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([pos, neg]).numpy()
    spread = x.std(0)
    spread[spread < 1e-12] = 1.0
    labels = np.r_[np.ones(len(pos)), np.zeros(len(neg))]
    model = LogisticRegression(max_iter=1000).fit((x - x.mean(0)) / spread, labels)
    return torch.from_numpy(model.coef_[0] / spread)


def _held_out(pos: Tensor, neg: Tensor, method: str, holdout: float) -> float:
    """AUC of a direction fitted on the first prompts of each set, on the last of each."""
    kept = [min(max(round(len(x) * (1 - holdout)), 2), len(x) - 1) for x in (pos, neg)]
    along = _direction(pos[: kept[0]], neg[: kept[1]], method)
    high, low = (x[k:] @ along for x, k in zip((pos, neg), kept, strict=True))
    wins = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    return float(wins.mean())


__all__ = ["METHODS", "Direction"]
