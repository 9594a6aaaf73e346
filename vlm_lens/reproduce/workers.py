"""Runs recipes and keeps their results: here, or in workers that each hold the model."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from vlm_lens.distributed import DistributedError, opened
from vlm_lens.errors import VLMLensError
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reproduce.resized import remember_resized
from vlm_lens.reproduce.store import Store
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe, Result

__all__ = ["kept_error", "run_on", "run_one"]


def run_one(
    name: str, recipe: Recipe, vlm: HookedVLM, store: Store, progress: bool
) -> tuple[float, str]:
    """Runs and saves one recipe: the seconds it took, and what went wrong, if anything."""
    clock = perf_counter()
    try:
        store.save(name, recipe.run(vlm, progress=progress))
    except Exception as error:  # hours of other runs do not end with one
        return perf_counter() - clock, kept_error(store.folder, name, error)
    return perf_counter() - clock, ""


def kept_error(folder: Path, name: str, error: Exception) -> str:
    """What went wrong in a line; of what the package did not foresee, the traceback goes to a file.

    Args:
        folder: The model's folder; the file is `errors/<name>.txt` in it.
        name: Of the run or the experiment.
        error: As it was caught.
    """
    return _kept(folder, name, *_told(error))


def run_on(
    runs: Mapping[str, Recipe], vlm: HookedVLM, store: Store, on: Any
) -> Iterator[tuple[str, float, str]]:
    """Runs recipes where `on` says, and saves them here, in the order in which they finish.

    Args:
        runs: The recipes by name.
        vlm: The model.
        store: Where results go.
        on: A `Loky` or `Ray`; see `vlm_lens.distributed`.
    """
    left = dict(runs)
    try:
        with opened(on, vlm) as workers:
            for name, seconds, result, error in workers.run(_run, runs.items()):
                del left[name]
                yield name, seconds, _saved(name, store, result, error)
    except DistributedError as error:  # processes ended again and again: for want of memory, say
        for name in left:
            yield name, 0.0, str(error)


def _saved(name: str, store: Store, result: Result | None, error: tuple[str, str] | None) -> str:
    """Saves a result; what went wrong with it, if anything."""
    if error is None:
        try:
            store.save(name, result)
            return ""
        except Exception as raised:
            error = _told(raised)
    return _kept(store.folder, name, *error)


def _run(
    vlm: HookedVLM, named: tuple[str, Recipe]
) -> Iterator[tuple[str, float, Result | None, tuple[str, str] | None]]:
    """A recipe's result, in a worker; or what went wrong, and the traceback if not foreseen."""
    remember_resized(vlm.processor)
    name, recipe = named
    clock = perf_counter()
    try:
        result, error = recipe.run(vlm, progress=False), None
    except Exception as raised:
        result, error = None, _told(raised)
    yield name, perf_counter() - clock, result, error


def _told(error: Exception) -> tuple[str, str]:
    """An error in a line, and its traceback; none where the package foresaw it."""
    if isinstance(error, VLMLensError):
        return str(error), ""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


def _kept(folder: Path, name: str, line: str, trace: str) -> str:
    if not trace:
        return line
    path = folder / "errors" / f"{name}.txt"
    write_whole(path, trace)
    return f"{line} (traceback: {path})"
