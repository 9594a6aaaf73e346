"""Resampling: an activation replaced by that of other prompts, drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vlm_lens.errors import InterventionError
from vlm_lens.integers import as_integer, as_integers
from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import EachLayer, Intervention, Place, Target
from vlm_lens.interventions.shapes import inner_shape, shaped
from vlm_lens.layout.positions import Position
from vlm_lens.ops import SET, Op
from vlm_lens.points.table import PointTable
from vlm_lens.serial import FrozenTensor, savable


@savable
@dataclass(frozen=True)
class Resample(AtPoints):
    """Replaces an activation by that of another prompt (resample ablation).

    Chan et al. 2022, causal scrubbing. Unlike zero or a mean it leaves every activation one that
    the model makes. All points and positions of a row are taken from one and the same prompt.
    Average over several draws: `each_sample()` makes one variant a prompt, to be swept.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; as many positions as `source` has.
        source: The other prompts' activations: `Samples.of(vlm, prompts, points, at=...)`, the
            ActivationCache of a batch, or a tensor `[prompts, positions, (heads,) d]`.
        heads: Which heads, at points that have them; all by default.
        seed: Which prompt each row of a batch gets is drawn by it, each once before one twice; of
            many prompts in batches, each gets the same in batches of every size.
        which: Which prompts instead: one for all rows, or one for each.
    """

    point: str | tuple[str, ...]
    at: Position
    source: Any
    heads: tuple[int, ...] | None = None
    seed: int = 0
    which: tuple[int, ...] | None = None
    _value: ClassVar[str] = "source"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "seed", as_integer(self.seed, "A seed", InterventionError))
        if self.which is not None:
            which = as_integers(self.which, "A prompt's number", InterventionError)
            object.__setattr__(self, "which", which)
        if self.at.at_generated:
            raise InterventionError("New tokens have no counterpart in other prompts' activations.")

    def op_at(self, place: Place, target: Target) -> Op:
        """A `set` op.

        Raises:
            InterventionError: Other prompts' activations of another form, or no such prompt.
        """
        values, inner = self.value_at(place, target), inner_shape(place.point)
        if values.dim() != 2 + len(inner):
            raise InterventionError(
                f"Resample takes the activations of other prompts at {place.point.name}, "
                f"[prompts, positions, ...]; it got {list(values.shape)}."
            )
        drawn = self.drawn(len(values), place.n_prompts)
        chosen = values[[drawn[number] for number in place.prompts]]
        counts = set(place.counts)
        if counts != {values.shape[1]}:
            raise InterventionError(
                f"The other prompts have {values.shape[1]} positions at {place.point.name}, and "
                f"{self.at} holds {' or '.join(map(str, sorted(counts)))} of this one: resample at "
                "positions that correspond."
            )
        own = replace(place, prompts=tuple(range(len(chosen))), n_prompts=len(chosen))
        return place.op(SET, value=shaped(chosen, own))

    def drawn(self, n_prompts: int, n_rows: int) -> tuple[int, ...]:
        """Which of the other prompts each row gets.

        Raises:
            InterventionError: `which` names one that there is not, or is of another length.
        """
        if self.which is None:
            generator, found = np.random.default_rng(self.seed), []
            while len(found) < n_rows:
                found += generator.permutation(n_prompts).tolist()
            return tuple(found[:n_rows])
        if len(self.which) not in (1, n_rows):
            raise InterventionError(
                f"which= names {len(self.which)} prompts; this prompt has {n_rows} rows."
            )
        lost = [n for n in self.which if not -n_prompts <= n < n_prompts]
        if lost:
            raise InterventionError(f"There are {n_prompts} other prompts; {lost[0]} was asked.")
        return self.which * n_rows if len(self.which) == 1 else self.which

    def each_sample(self) -> EachSample:
        """This resampling once for each of the other prompts, to be swept."""
        return EachSample(self)

    @property
    def n_samples(self) -> int:
        """How many other prompts there are."""
        source = self.source
        first = source if isinstance(source, FrozenTensor) else next(iter(source.values.values()))
        return len(first.data)


@dataclass(frozen=True)
class EachSample(EachLayer):
    """A resampling made once for each of the other prompts."""

    def expand(self, points: PointTable) -> list[Intervention]:
        """One intervention a prompt, in order."""
        return [replace(self.intervention, which=(n,)) for n in range(self.intervention.n_samples)]
