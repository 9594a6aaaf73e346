"""Controls of a transfer: what else is written, or written otherwise, at the place of the patch.

A control is a name and how its intervention is made. All run in one sweep with the patch itself,
which makes them cheap. One's own is passed to a recipe beside the shipped ones:

    def flipped(setting):
        return setting.write(-setting.value())

    CrossModalPatch(controls=("random", Control("flipped", "Opposite vector", flipped)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.keywords import Answering
from vlm_lens.recipes.result import RecipeError
from vlm_lens.tasks import Task
from vlm_lens.terms import ADDED, RANDOM, SHUFFLED, SINGLE, WRONG_OTHER, WRONG_SAME

__all__ = ["CONTROLS", "Control", "Setting", "chosen_controls", "donors", "interventions"]

# a task and a seed -> vectors with `.layer(i)`
Reader = Callable[[Task, int], Any]


@dataclass(frozen=True)
class Setting:
    """One patch, and all that a control of it may be made from.

    Attributes:
        task: The task.
        seed: The seed of its examples.
        layer: The 0-based block that is patched.
        tasks: The tasks of the recipe; shipped tasks come after them.
        vector: Gives any task's vector.
        write: Makes of a vector the intervention that the patch is: what it holds is replaced.
        add: Makes of a vector the intervention that adds it at the same place; None if there is
            no such thing.
        single: Gives the vector of a single prompt; None if `vector` does so already.
    """

    task: Task
    seed: int
    layer: int
    tasks: Sequence[Task]
    vector: Reader
    write: Callable[[Tensor], Any]
    add: Callable[[Tensor], Any] | None = None
    single: Reader | None = None

    def value(self, task: Task | None = None) -> Tensor:
        """The vector at the layer, `[d_model]`, of this task or another."""
        return self.vector(task or self.task, self.seed).layer(self.layer)

    def as_long(self, value: Tensor) -> Tensor:
        """A vector with the norm of this task's."""
        mine = self.value()
        return (value * (mine.norm() / value.norm())).to(mine.dtype)


@dataclass(frozen=True)
class Control(Answering):
    """A control.

    Attributes:
        key: How a recipe's field names it.
        name: How tables name it.
        make: Gives the intervention, or None where the control means nothing.
    """

    key: str
    name: str
    make: Callable[[Setting], Any]


def donors(task: Task, tasks: Sequence[Task]) -> tuple[Task | None, Task | None]:
    """Another task of the same domain, and one of another domain: those next in the list.

    Where a task of one's own names no domain, tasks that share inputs with it are of its domain.

    Args:
        task: The task whose vector is exchanged.
        tasks: The tasks of the recipe; shipped tasks come after them.
    """
    names = [one.name for one in tasks]
    after = names.index(task.name) + 1
    shipped = [Task.load(n) for n in Task.names() if n not in names]
    others = [*tasks[after:], *tasks[: after - 1], *shipped]
    known = {row.input for row in task.test}
    inputs = {id(o): {row.input for row in o.test} for o in others}

    def akin(o: Task) -> bool:
        if o.domain and task.domain:
            return o.domain == task.domain
        return bool(known & inputs[id(o)])

    same = (o for o in others if akin(o) and known <= inputs[id(o)])
    other = (o for o in others if not akin(o))
    return next(same, None), next(other, None)


def _wrong(which: int) -> Callable[[Setting], Any]:
    def make(setting: Setting) -> Any:
        donor = donors(setting.task, setting.tasks)[which]
        return None if donor is None else setting.write(setting.as_long(setting.value(donor)))

    return make


def _random(setting: Setting) -> Any:
    generator = torch.Generator().manual_seed(setting.seed)
    direction = torch.randn(setting.value().shape, generator=generator)
    return setting.write(setting.as_long(direction))


def _shuffled(setting: Setting) -> Any:
    """Min et al. 2022 (arXiv 2202.12837): what do examples say whose answers belong to others?"""
    return setting.write(setting.as_long(setting.value(setting.task.shuffled(setting.seed))))


def _single(setting: Setting) -> Any:
    if setting.single is None:
        return None
    return setting.write(setting.single(setting.task, setting.seed).layer(setting.layer))


def _added(setting: Setting) -> Any:
    return None if setting.add is None else setting.add(setting.value())


# The first four replace what is there by something of the patch's norm; the last two use the
# task's own vector in another way.
CONTROLS = (
    Control("wrong-same", WRONG_SAME, _wrong(0)),
    Control("wrong-other", WRONG_OTHER, _wrong(1)),
    Control("random", RANDOM, _random),
    Control("shuffled", SHUFFLED, _shuffled),
    Control("single", SINGLE, _single),
    Control("added", ADDED, _added),
)


def chosen_controls(
    chosen: bool | Iterable[str | Control], *, field: str, without: Sequence[str] = ()
) -> tuple[Control, ...]:
    """The controls that a recipe's field means.

    Args:
        chosen: All or none of the shipped ones, or keys of them and controls of one's own.
        field: The field's name, for the message.
        without: Keys that mean nothing for the recipe.

    Raises:
        RecipeError: There is no such key, or two have one name.
    """
    if isinstance(chosen, bool):
        return tuple(c for c in CONTROLS if chosen and c.key not in without)
    known = {control.key: control for control in CONTROLS}
    unknown = [c for c in chosen if isinstance(c, str) and (c not in known or c in without)]
    if unknown:
        listed = ", ".join(repr(key) for key in known if key not in without)
        raise RecipeError(f"{field} names {unknown[0]!r}; there are {listed}.")
    controls = tuple(known[c] if isinstance(c, str) else c for c in chosen)
    if len({c.name for c in controls}) < len(controls):
        raise RecipeError(f"{field} has two controls of one name.")
    return controls


def interventions(controls: Iterable[Control], setting: Setting) -> dict[str, Any]:
    """The interventions of the controls, by their names in tables; none where one is None."""
    made = {control.name: control.make(setting) for control in controls}
    return {name: intervention for name, intervention in made.items() if intervention is not None}
