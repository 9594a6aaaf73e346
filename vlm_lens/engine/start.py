"""From where a variant differs from the recorded run, and where a replay serves a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.tower import TowerStart
from vlm_lens.ops import MEAN, Op


@dataclass(frozen=True)
class Start:
    """From where a variant differs from the recorded run.

    Attributes:
        layer: The first block that must be run again; `n_layers` if none must.
        position: The first position that must be run again.
        tower: What it does before the language model, if anything.
    """

    layer: int
    position: int
    tower: TowerStart | None = None


class Stage(IntEnum):
    """The order in which handlers at one point of a replay are called."""

    CARRIED = 0  # those of a point before, whose activation this is too
    OWN = 1


@dataclass(frozen=True)
class Served:
    """Where the handlers of a point are called in a replay.

    What leaves a block is what enters the next one, unless the model adds something between. So
    handlers at `hook_resid_post` are called where the next block is entered, and a variant that
    changes it need not run the block itself.

    Attributes:
        layer: The block that a variant with an op there must run first; `n_layers` if none.
        point: The point whose hook calls them; `None` for the stream that enters the final norm,
            which the replay hands to them itself.
        stage: When, among the handlers of that point.
    """

    layer: int
    point: str | None
    stage: Stage


def served(name: str, baseline: Baseline) -> Served:
    """Where the handlers of a point of the language model are called."""
    if name == "hook_merged":
        return Served(0, "blocks.0.hook_resid_pre", Stage.CARRIED)
    layer, n_layers = baseline.arch.points[name].layer, baseline.n_layers
    if name != f"blocks.{layer}.hook_resid_post" or layer + 1 in baseline.added:
        return Served(n_layers if layer is None else layer, name, Stage.OWN)
    if layer + 1 == n_layers:
        return Served(n_layers, None, Stage.CARRIED)
    return Served(layer + 1, f"blocks.{layer + 1}.hook_resid_pre", Stage.CARRIED)


def in_text(op: Op, baseline: Baseline) -> bool:
    """Whether an op acts in the language model."""
    return baseline.arch.points[op.point].space == "text"


def start_of(ops: Sequence[Op], baseline: Baseline) -> Start:
    """The first block and position that ops can change.

    Raises:
        NotReplayable: An op acts on what was not recorded.
    """
    layer, position, tower = baseline.n_layers, baseline.length, None
    for op in ops:
        if op.point == "hook_embed":
            raise NotReplayable("hook_embed comes before the language model")
        if op.since is not None:
            raise NotReplayable("it acts on generated tokens")
        if not in_text(op, baseline):
            continue
        layer = min(layer, served(op.point, baseline).layer)
        positions = list(op.positions)
        if op.kind == MEAN:
            positions += op.tensors["pool"][:, 1].tolist()
        position = min([position, *positions])
    before = [op for op in ops if not in_text(op, baseline)]
    if before:
        if baseline.tower is None:
            reason = baseline.no_tower or "the tower was not recorded"
            raise NotReplayable(f"{before[0].point} comes before the language model: {reason}")
        tower, layer = baseline.tower.start_of(before), 0
        shown = baseline.tower.pictures.shown
        position = min([position, *(shown[n].positions[0] for n in tower.pictures)])
    return Start(layer, baseline.reached[min(position, baseline.length - 1)], tower)
