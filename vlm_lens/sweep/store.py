"""A sweep's finished chunks on disk, so that a killed sweep goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.storage.files import read_tensors, write_tensors
from vlm_lens.storage.folder import RunFolder
from vlm_lens.sweep.variants import Variant

_PLAIN = "plain"
_RECORDS = "records"
_ROWS = "rows"
_PLAIN_RUN = -1  # its number among the variants of a batch

Records = Mapping[int, Sequence[Mapping[str, Any]]]


class StoreError(VLMLensError):
    """A folder that cannot hold this sweep: it is another's, or cannot be written to."""


def identity(
    vlm: HookedModel, prompt: Any, variants: Sequence[Variant], measure: Any
) -> dict[str, str]:
    """What tells one sweep from another: the run's identity, prompt, variants, measure.

    Args:
        vlm: The model.
        prompt: What is read: a prompt's tensors and layouts, or texts and pictures.
        variants: The variants.
        measure: What is measured.
    """
    return run_identity(
        vlm,
        prompt=prompt,
        variants=[(v.intervention, {k: str(x) for k, x in v.labels.items()}) for v in variants],
        measure=measure,
    )


class _Store:
    """A folder of finished work, a context manager: see `RunFolder`.

    Args:
        folder: The folder; made if it is not there.
        identity: What the sweep is; see `identity`.

    Raises:
        StoreError: The folder holds another sweep, or another process is at work in it.
    """

    holds: str

    def __init__(self, folder: str | Path, identity: Mapping[str, str]):
        self._folder = RunFolder(folder, identity, holds=self.holds, error=StoreError)

    def __enter__(self) -> Self:
        self._folder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._folder.close()

    def must_be_writable(self) -> None:
        """Refuses a folder that cannot be written to, before anything is computed."""
        self._folder.must_be_writable()


class SweepStore(_Store):
    """Finished chunks of the variants of one prompt."""

    holds = "a sweep"

    def load(self) -> dict[int, list[dict[str, Any]]]:
        """Variant number -> its records, for every variant that was finished."""
        done: dict[int, list[dict[str, Any]]] = {}
        for path in self._folder.files("chunk-*.safetensors"):
            done.update(_read(path))
        return done

    def load_plain(self) -> list[dict[str, Any]]:
        """The measurements of the plain run, none if they were not written."""
        path = self._folder.path / f"{_PLAIN}.safetensors"
        return _read(path)[0] if path.exists() else []

    def add_plain(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes the measurements of the plain run, once.

        Raises:
            StoreError: The measure gives what cannot be written.
        """
        path = self._folder.path / f"{_PLAIN}.safetensors"
        if records and not path.exists():
            _write(path, {0: records})

    def add(self, records: Records) -> None:
        """Writes finished variants; the file is there whole or not at all.

        Raises:
            StoreError: The measure gives what cannot be written.
        """
        _write(
            self._folder.path / f"chunk-{min(records):08d}-{max(records):08d}.safetensors", records
        )


class BatchStore(_Store):
    """Finished batches of prompts, each with all variants."""

    holds = "a sweep of prompts"

    def places(self) -> dict[int, tuple[Path, int]]:
        """Prompt -> the file of its batch and its place in it, for those that are finished."""
        return {
            row: (path, i)
            for path in self._folder.files("batch-*.safetensors")
            for i, row in enumerate(json.loads(_header(path)[_ROWS]))
        }

    def plain(self) -> dict[int, dict[str, Any]]:
        """Prompt -> the measurements of its plain run, where they were measured."""
        found: dict[int, dict[str, Any]] = {}
        for path in self._folder.files("batch-*.safetensors"):
            plain = self.read(path).get(_PLAIN_RUN, ())
            for row, record in zip(json.loads(_header(path)[_ROWS]), plain, strict=False):
                # a copy: what is read keeps the file's whole pages in memory
                found[row] = {
                    k: v.clone() if isinstance(v, Tensor) else v for k, v in record.items()
                }
        return found

    def add(
        self, rows: Sequence[int], records: Records, plain: Sequence[Mapping[str, Any]]
    ) -> None:
        """Writes a finished batch; the file is there whole or not at all.

        Raises:
            StoreError: The measure gives what cannot be written.
        """
        held = {**records, **({_PLAIN_RUN: plain} if plain else {})}
        path = self._folder.path / f"batch-{min(rows):08d}.safetensors"
        _write(path, held, {_ROWS: json.dumps(list(rows))})

    @staticmethod
    def read(path: Path) -> dict[int, list[dict[str, Any]]]:
        """Variant -> its records in a batch, one a row."""
        return _read(path)


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def _write(path: Path, records: Records, about: Mapping[str, str] | None = None) -> None:
    """Numbers and texts as JSON in the file's header, tensors as its tensors."""
    tensors: dict[str, Tensor] = {}
    data = {n: [_columns(row, tensors) for row in rows] for n, rows in records.items()}
    write_tensors(path, tensors, {_RECORDS: json.dumps(data), **(about or {})})


def _read(path: Path) -> dict[int, list[dict[str, Any]]]:
    tensors, about = read_tensors(path)
    if _RECORDS not in about:
        raise StoreError(f"{path} is not of a sweep: delete it, and its variants run again.")

    def value(kept: Any) -> Any:
        return tensors[kept["tensor"]] if isinstance(kept, dict) else kept

    return {
        int(number): [{k: value(v) for k, v in row.items()} for row in rows]
        for number, rows in json.loads(about[_RECORDS]).items()
    }


def _columns(row: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {str(name): _column(name, value, tensors) for name, value in row.items()}


def _column(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        value = torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach().cpu().clone()
        return {"tensor": key}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return list(value)
    raise StoreError(
        f"save= keeps numbers, texts, lists of them and tensors; the measure's column {name!r} "
        f"holds a {type(value).__name__}."
    )


__all__ = ["BatchStore", "StoreError", "SweepStore", "identity"]
