"""A folder of arrays by number, so that a killed run goes on with those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from vlm_lens.errors import VLMLensError
from vlm_lens.storage.files import read_tensors, write_tensors
from vlm_lens.storage.folder import RunFolder

_VALUES = "values"


class ArrayFolder:
    """Finished arrays of one run, a context manager: see `RunFolder`.

    Args:
        folder: The folder; made if it is not there.
        identity: What the arrays depend on.
        unit: What a number counts, `"pair"`; files are named by it.
        holds: What the folder holds, for messages.
        error: The class of the errors about it.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        *,
        unit: str,
        holds: str,
        error: type[VLMLensError],
    ):
        self._folder = RunFolder(folder, identity, holds=holds, error=error)
        self._unit = unit

    def __enter__(self) -> ArrayFolder:
        self._folder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._folder.close()

    def load(self, total: int) -> dict[int, np.ndarray]:
        """Number -> array, of those that are finished.

        Args:
            total: How many there will be.

        Raises:
            VLMLensError: Some are missing, and the folder cannot be written to.
        """
        found = {
            int(path.stem.removeprefix(f"{self._unit}-")): read_tensors(path)[0][_VALUES].numpy()
            for path in self._folder.files(f"{self._unit}-*.safetensors")
        }
        if len(found) < total:
            self._folder.must_be_writable()
        return found

    def add(self, numbers: Sequence[int], arrays: Iterable[np.ndarray]) -> None:
        """Writes finished arrays; each file is there whole or not at all."""
        for number, array in zip(numbers, arrays, strict=True):
            held = torch.from_numpy(np.ascontiguousarray(array))
            path = self._folder.path / f"{self._unit}-{number:06d}.safetensors"
            write_tensors(path, {_VALUES: held})


def collect(
    total: int,
    batches: Callable[[list[int]], Iterable[Sequence[int]]],
    make: Callable[[Sequence[int]], Iterable[np.ndarray]],
    *,
    unit: str,
    store: ArrayFolder | None = None,
    progress: bool = False,
) -> np.ndarray:
    """All arrays, `[total, ...]`, made batch by batch; those that a folder has are read from it.

    Args:
        total: How many there are.
        batches: Puts those that are missing, by number, into batches.
        make: Gives the arrays of a batch.
        unit: What a number counts, for the progress bar.
        store: A folder that keeps what is finished.
        progress: Whether to show a progress bar.

    Raises:
        VLMLensError: The folder holds something else, or cannot be written to.
    """
    with store or nullcontext(), tqdm(total=total, disable=not progress, unit=unit) as bar:
        found = store.load(total) if store else {}
        bar.update(len(found))
        for batch in batches([i for i in range(total) if i not in found]):
            made = list(make(batch))
            found.update(zip(batch, made, strict=True))
            if store:
                store.add(batch, made)
            bar.update(len(batch))
    return np.stack([found[i] for i in range(total)])


__all__ = ["ArrayFolder", "collect"]
