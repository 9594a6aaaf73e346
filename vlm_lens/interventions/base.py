"""What every intervention is: a frozen value that lowers, on a model and a prompt, to plain ops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import SupportsIndex

from torch import Tensor

from vlm_lens.errors import InterventionError, PointError, VLMLensError
from vlm_lens.integers import as_integers, is_integer
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Generated, Position
from vlm_lens.ops import Op
from vlm_lens.points.point import Point, expand_name
from vlm_lens.points.table import PointTable
from vlm_lens.serial import Savable, savable


@savable
@dataclass(frozen=True)
class ModelFacts:
    """What a value may ask about the model it is used on.

    Attributes:
        name: The model's name.
        n_layers: Its number of blocks.
        d_model: Its width.
        unembed_hash: A hash of its unembedding; `None` where the weights cannot be read.
        weights: A digest of all its weights and of which adapters are on, as they were; `None`
            where some cannot be read (quantised, offloaded).
        signs: The same of the weights' signs, one for a model in every floating dtype.
        dtype: The dtype of its activations.
    """

    name: str
    n_layers: int
    d_model: int
    unembed_hash: str | None = None
    weights: str | None = None
    signs: str | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Target:
    """A model and a prompt, as far as an intervention needs to know them.

    Attributes:
        points: The model's points.
        layouts: The layout of each row.
        facts: Gives what says which model it is. It is called where a value asks: hashing weights
            takes time, and a plain run has no use for it.
        rows: Which of many prompts its rows are, where they run in batches; else none.
        n_prompts: How many prompts there are then.
    """

    points: PointTable
    layouts: tuple[Layout, ...]
    facts: Callable[[], ModelFacts]
    rows: tuple[int, ...] = ()
    n_prompts: int = 0

    @cached_property
    def model(self) -> ModelFacts:
        """Which model it is."""
        return self.facts()

    @property
    def prompt_length(self) -> int:
        """Positions of the (padded) prompt."""
        return len(self.layouts[0])


class Intervention(Savable, ABC):
    """A change to a run, usable on any prompt: frozen, hashable, composable by `+`."""

    @abstractmethod
    def lower(self, target: Target) -> list[Op]:
        """The ops that this intervention means on a model and a prompt.

        Raises:
            VLMLensError: It does not fit the model or the prompt; the message says why.
        """

    def each_layer(self) -> EachLayer:
        """This intervention once for each point that its globs match, to be swept."""
        return EachLayer(self)

    def __add__(self, other: Intervention) -> Composed:
        """Both, this one first where they touch the same place."""
        if not isinstance(other, Intervention):
            return NotImplemented
        return Composed((*_parts(self), *_parts(other)))

    def __radd__(self, other: object) -> Intervention:
        """Lets `sum([a, b])` compose."""
        return self if other == 0 else NotImplemented


@dataclass(frozen=True, repr=False)
class OfRows(Intervention):
    """An intervention on many prompts, on those of them that run together in a batch.

    Attributes:
        intervention: What it is on all of them.
        rows: Which of the prompts the rows of the batch are.
        n_prompts: How many there are in all.
    """

    intervention: Intervention
    rows: tuple[int, ...]
    n_prompts: int

    def lower(self, target: Target) -> list[Op]:
        """Its ops, values of each prompt being those of these prompts."""
        return self.intervention.lower(replace(target, rows=self.rows, n_prompts=self.n_prompts))

    def __repr__(self) -> str:
        return repr(self.intervention)


@savable
@dataclass(frozen=True)
class EachLayer:
    """An intervention made once for each point that its globs match."""

    intervention: Intervention

    def expand(self, points: PointTable) -> list[Intervention]:
        """One intervention a point, in the order of the forward pass.

        Raises:
            InterventionError: The intervention is not made at points.
        """
        names = getattr(self.intervention, "point", None)
        if names is None:
            raise InterventionError(
                f"{self.intervention!r} has no points to go through: give a list with one "
                "intervention for each layer."
            )
        found = points.match(list(freeze_points(names)))
        return [replace(self.intervention, point=name) for name in found]


@savable
@dataclass(frozen=True)
class Composed(Intervention):
    """Several interventions in one run, in order."""

    parts: tuple[Intervention, ...]

    def lower(self, target: Target) -> list[Op]:
        """The ops of each part, in order."""
        return [op for part in self.parts for op in part.lower(target)]

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _parts(intervention: Intervention) -> tuple[Intervention, ...]:
    return intervention.parts if isinstance(intervention, Composed) else (intervention,)


def compose(interventions: Intervention | Iterable[Intervention] | None) -> Composed:
    """One or many interventions as one value.

    Raises:
        InterventionError: Something in the list is not an intervention.
    """
    if interventions is None:
        return Composed(())
    if isinstance(interventions, Intervention):
        return Composed(_parts(interventions))
    found: list[Intervention] = []
    for one in interventions if isinstance(interventions, Iterable) else [interventions]:
        if not isinstance(one, Intervention):
            raise InterventionError(
                f"interventions= takes ActivationPatch(...), Steer(...), Ablate(...) and the like; "
                f"it got {type(one).__name__}. Plain functions go to run_with_hooks(fwd_hooks=...)."
            )
        found += _parts(one)
    return Composed(tuple(found))


def freeze_points(points: str | Sequence) -> tuple[str, ...]:
    """Point names, globs or short forms as a tuple of full names and globs."""
    if isinstance(points, str):
        return (points,)
    if not isinstance(points, Iterable):
        return (expand_name(points),)  # refused there
    if not points:
        raise PointError("No point was given: name one, 'blocks.3.hook_resid_post' or a glob.")
    if isinstance(points, tuple) and len(points) in (2, 3) and is_integer(points[1]):
        return (expand_name(points),)
    return tuple(expand_name(p) for p in points)


def freeze_heads(heads: SupportsIndex | Iterable[SupportsIndex] | None) -> tuple[int, ...] | None:
    """Heads as a tuple, `None` for all.

    Raises:
        InterventionError: What is no number, none at all, or one twice.
    """
    if heads is None:
        return None
    chosen = as_integers(heads, "A head", InterventionError)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InterventionError(f"heads={list(chosen)} must name at least one head, each once.")
    return chosen


@dataclass(frozen=True)
class Place:
    """Where an op acts: pairs of row and position, and the heads.

    Attributes:
        counts: Number of places in each prompt row (or for the generated tokens, empty).
        prompts: Which of `n_prompts` prompts these rows are.
    """

    point: Point
    rows: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...] | None
    counts: tuple[int, ...]
    since: int | None
    prompts: tuple[int, ...] = ()
    n_prompts: int = 0

    def op(self, kind: str, **tensors: Tensor) -> Op:
        """An op at this place."""
        return Op(self.point.name, kind, self.rows, self.positions, self.heads, tensors, self.since)


def places(
    target: Target, points: tuple[str, ...], at: Position, heads: tuple[int, ...] | None
) -> list[Place]:
    """The places that points, a position and heads mean on a prompt.

    Raises:
        PointError: No such point, one that cannot be written, or heads where there are none.
        PositionError: No such position in one of the prompts.
    """
    found = []
    for name in target.points.match(list(points)):
        point = target.points[name]
        if not point.writable:
            raise PointError(f"{name} cannot be written: {point.read_only}.")
        _check_heads(point, heads)
        if at.at_generated:
            Generated().resolve(target.layouts[0], point.space)
            found.append(Place(point, (), (), heads, (), target.prompt_length))
        inside = at.in_prompt
        if inside is None:
            continue
        pairs, counts = [], []
        for layout in target.layouts:
            try:
                mine = inside.resolve(layout, point.space)
            except VLMLensError as error:
                where = f" (row {layout.row} of the batch)" if len(target.layouts) > 1 else ""
                raise type(error)(f"{name}{where}: {error}") from None
            pairs += mine
            counts.append(len(mine))
        if not pairs:
            raise InterventionError(
                f"{at} holds no position of this prompt, so a write to {name} would do nothing."
            )
        rows, positions = zip(*pairs, strict=True)
        prompts = target.rows or tuple(range(len(counts)))
        n_prompts = target.n_prompts or len(counts)
        found.append(Place(point, rows, positions, heads, tuple(counts), None, prompts, n_prompts))
    return found


def _check_heads(point: Point, heads: tuple[int, ...] | None) -> None:
    if heads is None:
        return
    if not point.has_heads:
        raise PointError(
            f"{point.name} has no axis of heads ({point.shape}); heads= works at attn.hook_q, "
            "hook_k, hook_v, hook_z, hook_attn_scores and hook_pattern."
        )
    n_heads = point.sizes[point.axes.index("head")]
    wrong = [h for h in heads if not 0 <= h < n_heads]
    if wrong or not heads:
        raise PointError(f"{point.name} has heads 0..{n_heads - 1}; {list(heads)} was asked.")
