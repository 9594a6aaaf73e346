"""A sweep's finished chunks on disk, so that a killed sweep goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import FrozenTensor, pack
from vlm_lens.sweep.variants import Variant

_MANIFEST, _PLAIN = "sweep.json", "plain.json"


class StoreError(VLMLensError):
    """A folder that belongs to another sweep."""


def identity(
    vlm: HookedModel, prompt: Prompt, variants: Sequence[Variant], measure: Any
) -> dict[str, str]:
    """Hashes that tell one sweep from another: model, prompt, variants, measure."""
    digest = hashlib.sha256()
    for variant in variants:
        tensors: dict[str, Tensor] = {}
        data = pack(variant.intervention, tensors)
        digest.update(json.dumps([data, _plain(variant.labels)], sort_keys=True).encode())
        for tensor in tensors.values():
            digest.update(FrozenTensor(tensor).digest.encode())
    inputs = "".join(FrozenTensor(prompt.inputs[k]).digest for k in sorted(prompt.inputs))
    facts = (vlm.name, vlm.facts.unembed_hash, vlm.cfg.n_layers, str(vlm.dtype))
    return {
        "model": _hash(repr(facts)),
        "prompt": _hash(inputs),
        "variants": digest.hexdigest()[:16],
        "measure": _hash(repr(measure)),
    }


class SweepStore:
    """A folder of finished chunks.

    Args:
        folder: The folder; made if it is not there.
        identity: What the sweep is; see `identity`.

    Raises:
        StoreError: The folder holds another sweep.
    """

    def __init__(self, folder: str | Path, identity: dict[str, str]):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        manifest = self._folder / _MANIFEST
        if manifest.exists():
            found = json.loads(manifest.read_text())
            other = [k for k, v in identity.items() if found.get(k) != v]
            if other:
                raise StoreError(
                    f"{folder} holds a sweep with another {' and '.join(other)}: give another "
                    "folder, or delete this one."
                )
        elif any(self._folder.iterdir()):
            raise StoreError(f"{folder} is not empty and holds no sweep: give another folder.")
        else:
            _write(manifest, json.dumps(identity, indent=1).encode())

    def load(self) -> dict[int, list[dict[str, Any]]]:
        """Variant number -> its records, for every variant that was finished."""
        done: dict[int, list[dict[str, Any]]] = {}
        for path in sorted(self._folder.glob("chunk-*.json")):
            for number, records in json.loads(path.read_text()).items():
                done[int(number)] = records
        return done

    def load_plain(self) -> list[dict[str, Any]]:
        """The measurements of the plain run, none if they were not written."""
        path = self._folder / _PLAIN
        return json.loads(path.read_text()) if path.exists() else []

    def add_plain(self, records: list[dict[str, Any]]) -> None:
        """Writes the measurements of the plain run, once."""
        if records and not (self._folder / _PLAIN).exists():
            _write(self._folder / _PLAIN, json.dumps(records).encode())

    def add(self, records: dict[int, list[dict[str, Any]]]) -> None:
        """Writes finished variants; the file is there whole or not at all.

        Raises:
            StoreError: The measure gives tensors, which are not written.
        """
        if any(isinstance(v, Tensor) for rs in records.values() for r in rs for v in r.values()):
            raise StoreError("save= keeps numbers and text; this measure gives tensors.")
        name = f"chunk-{min(records):08d}-{max(records):08d}.json"
        _write(self._folder / name, json.dumps(records).encode())


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _plain(labels: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in labels.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
