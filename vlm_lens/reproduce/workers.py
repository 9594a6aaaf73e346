"""Runs one recipe and keeps it, here or in processes that each hold the model."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import VLMLensError
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reproduce.resized import remember_resized
from vlm_lens.reproduce.store import Store
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe
    from vlm_lens.reproduce.plan import ModelPlan
    from vlm_lens.reproduce.setup import Setup

__all__ = ["in_processes", "kept_error", "run_one"]

_WORKER: dict[str, Any] = {}


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
    if isinstance(error, VLMLensError):
        return str(error)
    path = folder / "errors" / f"{name}.txt"
    write_whole(path, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error} (traceback: {path})"


def in_processes(
    runs: Mapping[str, Recipe], plan: ModelPlan, options: Mapping[str, Any], jobs: int
) -> Iterator[tuple[str, float, str]]:
    """Runs recipes in processes that each hold the model, in the order in which they finish."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    start = (plan.setup, plan.folder, dict(options))
    with ProcessPoolExecutor(
        min(jobs, len(runs)), context, initializer=_start_worker, initargs=start
    ) as pool:
        waiting = {pool.submit(_work, name, recipe): name for name, recipe in runs.items()}
        try:
            for done in as_completed(waiting):
                name, error = waiting[done], done.exception()
                if isinstance(error, Exception):  # the process itself ended: killed for memory, say
                    yield name, 0.0, kept_error(plan.folder, name, error)
                else:
                    yield name, *done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(setup: Setup, folder: Path, options: Mapping[str, Any]) -> None:
    import signal

    import torch
    from transformers.utils import logging

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    vlm = HookedVLM.from_pretrained(setup.model, **options)
    store = Store(folder, setup, vlm)
    store.check()
    _WORKER.update(vlm=vlm, store=store)
    remember_resized(vlm.processor)


def _end_with_parent() -> None:
    """A worker whose parent was killed has nobody to work for."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(name: str, recipe: Recipe) -> tuple[float, str]:
    return run_one(name, recipe, _WORKER["vlm"], _WORKER["store"], progress=False)
