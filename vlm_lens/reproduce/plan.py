"""What is going to be run, checked before any of it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens.model.checkpoints import base_of, unrelated_of
from vlm_lens.reproduce.experiment import Experiment
from vlm_lens.reproduce.experiments import choose
from vlm_lens.reproduce.setup import (
    ReproduceError,
    Setup,
    choose_further,
    choose_tasks,
    find_data,
)
from vlm_lens.storage.folder import MANIFEST

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe

__all__ = ["ModelPlan", "make_plan"]


@dataclass(frozen=True)
class ModelPlan:
    """The experiments on one model.

    Attributes:
        setup: The model and what goes with it.
        experiments: Those that are run.
        runs: The recipes that they need, by name, each once.
        skipped: Experiments that this model cannot have, with the reason.
        folder: Where the model's results go.
    """

    setup: Setup
    experiments: tuple[Experiment, ...]
    runs: Mapping[str, Recipe]
    skipped: Mapping[str, str]
    folder: Path


def make_plan(
    ids: Iterable[str],
    models: Sequence[str],
    *,
    base: str | None = None,
    data: str | Path | None = None,
    tasks: Sequence[str] = (),
    seeds: int = 3,
    batch_size: int | None = None,
    out: str | Path = "reproduce",
) -> tuple[ModelPlan, ...]:
    """Checks everything that can be checked without a model's weights.

    Args:
        ids: Experiments: ids, rows E1 to E14, or `"all"`.
        models: Zoo names, folders or Hub ids.
        base: The base language model, instead of the one that is known.
        data: A folder with the tasks as the paper's authors publish them, or their data set on
            the Hub, `"g-luo/task_vectors_are_cross_modal"`.
        tasks: Which tasks; the paper's six if empty.
        seeds: Seeds 1 to this many.
        batch_size: How many prompts run together.
        out: Where results go; each model gets a folder in it.

    Returns:
        One plan a model.

    Raises:
        VLMLensError: An unknown id, model, base or task, data that is missing, or a model without
            pictures; the message says which option.
    """
    chosen = choose(ids)
    folder = find_data(data)
    rows = choose_tasks(tasks, folder)
    further = choose_further(rows, folder)
    if not models:
        raise ReproduceError("Name a model, for example --model toy-llava.")
    if seeds < 1:
        raise ReproduceError(f"--seeds is {seeds}; the least is 1.")
    plans = []
    for model in models:
        setup = Setup(
            model, _family(model), _base(model, base), rows, further, seeds, batch_size,
            unrelated_of(model),
        )  # fmt: skip
        plans.append(_for_model(chosen, setup, Path(out)))
    folders = [plan.folder for plan in plans]
    if len(set(folders)) < len(folders):
        raise ReproduceError(f"Two of --model would write to one folder: {', '.join(models)}.")
    _refuse_other_models(Path(out), folders)
    return tuple(plans)


def _refuse_other_models(out: Path, folders: Sequence[Path]) -> None:
    """A report is of all models of a folder: one that is not named would vanish from it."""
    others = [path.parent.name for path in sorted(out.glob(f"*/{MANIFEST}"))
              if path.parent not in folders]  # fmt: skip
    if others:
        raise ReproduceError(
            f"{out} holds results of {', '.join(others)} too, which the report would lose: name "
            "them with --model as well (what is finished is not run again), or give another --out."
        )


def _for_model(chosen: Sequence[Experiment], setup: Setup, out: Path) -> ModelPlan:
    skipped = {
        one.id: setup.why_no_base for one in chosen if "base" in one.needs and setup.base is None
    }
    experiments = tuple(one for one in chosen if one.id not in skipped)
    runs: dict[str, Recipe] = {}
    for one in experiments:
        for name, recipe in one.recipes(setup).items():
            if runs.setdefault(name, recipe).to_dict() != recipe.to_dict():
                raise AssertionError(f"two recipes are called {name}")
    return ModelPlan(setup, experiments, runs, skipped, out / setup.label.replace("/", "--"))


def _family(model: str) -> str:
    """The family of a model that takes pictures, from its config alone."""
    family = _described(model)
    if not family.takes_images:
        raise ReproduceError(
            f"--model {model} takes no pictures: every experiment needs a vision-language model. "
            "A language model is given as --base."
        )
    return family.name


def _base(model: str, base: str | None) -> str | None:
    if base is None:
        return base_of(model)
    if _described(base).takes_images:
        raise ReproduceError(f"--base {base} is a vision-language model, not a language model.")
    return base


def _described(model: str):
    from vlm_lens.families import family_of
    from vlm_lens.model.loading import find, read_config

    where, checkpoint = find(model)
    options = {} if checkpoint is None else {"revision": checkpoint.revision}
    return family_of(read_config(model, where, **options))
