"""What is swept: a list of interventions, each with labels that say which it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from torch import Tensor

from vlm_lens.errors import InterventionError, PointError
from vlm_lens.interventions.base import (
    Composed,
    EachLayer,
    Intervention,
    compose,
    freeze_points,
)
from vlm_lens.interventions.patch import ActivationPatch
from vlm_lens.interventions.steer import Steer
from vlm_lens.interventions.values import checked
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.table import PointTable
from vlm_lens.serial import as_frozen


@dataclass(frozen=True)
class Variant:
    """One intervention of a sweep and the labels of its row in the result.

    Attributes:
        intervention: The intervention; a list of several is composed, an empty one is the plain
            run.
        labels: Label -> what it is for this variant; `layer`, `head`, `position` and `scale` become
            axes of `result.scores()`.

    Raises:
        InterventionError: Something in it is no intervention.
    """

    intervention: Intervention
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        if not isinstance(self.intervention, Intervention):
            object.__setattr__(self, "intervention", compose(self.intervention))
        if not isinstance(self.labels, Mapping):
            raise InterventionError(
                f"The labels of a Variant are a mapping, as {{'strength': 2.0}}, not "
                f"{self.labels!r:.60}."
            )


@dataclass(frozen=True)
class Grid:
    """Every combination of points, positions, heads, scales and vectors.

    Attributes:
        point: A point, a glob or a list of them.
        at: One position, a list of them, or a mapping from labels to positions.
        vectors: What is written or added: one value, or a mapping from labels to values.
        layers: Blocks to take among those matched; all by default.
        heads: Heads, each on its own; `None` for whole activations.
        scale: With scales the vectors are added, each times each scale; without, they replace.
        allow_transfer: Lets vectors of another model of the same width be used.
    """

    point: str | Sequence[str]
    at: Any
    vectors: Any
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    scale: Sequence[float] | None = None
    allow_transfer: bool = False

    def expand(self, points: PointTable) -> Iterator[Variant]:
        """One variant a combination, labelled by all that varies."""
        names = points.match(list(freeze_points(self.point)))
        if self.layers is not None:
            wanted = set(self.layers)
            names = [n for n in names if points[n].layer in wanted]
        if not names:
            raise PointError(
                f"{self.point!r} has no point in the layers {list(self.layers or ())}."
            )
        positions = _named_positions(self.at)
        # frozen once: of a tensor on a GPU, each value made of it would wait for a copy of its own
        vectors = {
            label: as_frozen(checked(v)) if isinstance(v, Tensor) else v
            for label, v in _named(self.vectors, "vector").items()
        }
        heads = [None] if self.heads is None else list(self.heads)
        scales = [None] if self.scale is None else list(self.scale)
        axes = product(names, positions.items(), heads, scales, vectors.items())
        for name, (position, at), head, scale, (label, vector) in axes:
            options = {"heads": head, "allow_transfer": self.allow_transfer}
            made: Intervention
            if scale is None:
                made = ActivationPatch(name, at, vector, **options)
            else:
                made = Steer(name, at, vector, scale, **options)
            extra = {"at": position, "head": head, "scale": scale, "vector": label}
            yield labelled(made, points, **{k: v for k, v in extra.items() if v is not None})


def labelled(intervention: Intervention, points: PointTable, **more: Any) -> Variant:
    """A variant with the labels that can be read off an intervention."""
    labels: dict[str, Any] = {}
    names = {f.name for f in fields(intervention)}
    if "point" in names:
        matched = points.match(list(freeze_points(intervention.point)))
        labels["point"] = intervention.point if len(matched) > 1 else matched[0]
        if len(matched) == 1 and points[matched[0]].layer is not None:
            labels["layer"] = points[matched[0]].layer
    if getattr(intervention, "layers", None):
        labels["layer"] = intervention.layers[0]
        labels["layers"] = ",".join(map(str, intervention.layers))
    for place in [n for n in ("queries", "keys") if n in names]:
        labels[place] = repr(getattr(intervention, place))
    if "at" in names:
        labels["at"] = repr(intervention.at)
    if getattr(intervention, "heads", None) is not None:
        labels["head"] = ",".join(map(str, intervention.heads))
    for name in [n for n in ("scale", "which") if getattr(intervention, n, None) is not None]:
        value = getattr(intervention, name)
        labels["sample" if name == "which" else name] = value[0] if name == "which" else value
    if isinstance(intervention, Composed):
        labels["intervention"] = repr(intervention) or "none"
    return Variant(intervention, {**labels, **more})


def expand(variants: Any, points: PointTable) -> list[Variant]:
    """The variants meant by a list of interventions, a `Grid`, or `x.each_layer()`.

    An entry of the list may be a list itself: several interventions, or none, as one variant.

    Raises:
        InterventionError: No variants, or something that is none.
    """
    if isinstance(variants, Intervention):
        variants = [variants]
    if isinstance(variants, EachLayer | Grid):
        variants = [variants]
    if isinstance(variants, Iterable):
        found = []
        for one in variants:
            if isinstance(one, Variant):
                found.append(one)
            elif isinstance(one, Grid):
                found += one.expand(points)
            elif isinstance(one, EachLayer):
                found += [labelled(i, points) for i in one.expand(points)]
            elif isinstance(one, Intervention):
                found.append(labelled(one, points))
            elif one is None or isinstance(one, list | tuple):
                found.append(labelled(compose(one), points))
            else:
                raise InterventionError(f"A sweep takes interventions, not {type(one).__name__}.")
    else:
        raise InterventionError(f"A sweep takes interventions, not {type(variants).__name__}.")
    if not found:
        raise InterventionError("There is nothing to sweep: the list of variants is empty.")
    return found


def _named(values: Any, kind: str) -> dict[str | None, Any]:
    if isinstance(values, Mapping) and not hasattr(values, "slice_at"):
        return dict(values)
    if isinstance(values, list | tuple):
        return {f"{kind} {i}": v for i, v in enumerate(values)}
    return {None: values}


def _named_positions(at: Any) -> dict[str, Position]:
    if isinstance(at, Mapping):
        return {str(k): as_position(v) for k, v in at.items()}
    if isinstance(at, list | tuple | range):
        return {str(p): as_position(p) for p in at}
    return {str(at): as_position(at)}
