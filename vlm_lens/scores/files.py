"""Scores on disk: safetensors for the numbers, JSON for everything else, PNG for pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from PIL import Image

from vlm_lens.errors import VLMLensError
from vlm_lens.serial import pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "scores.json"


def save(found: Any, folder: str | Path) -> Path:
    """Writes the fields of `Scores`; see `Scores.save`."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = found.values
    coords = {
        str(name): {"dims": [str(d) for d in c.dims], "values": c.to_numpy().tolist()}
        for name, c in values.coords.items()
    }
    tensors: dict[str, Tensor] = {}
    data = {
        "scores": 1,
        "dims": list(found.axes),
        "coords": coords,
        "name": found.name,
        "space": found.space,
        "marked": {k: list(v) for k, v in found.marked.items()},
        "about": {k: _plain(v) for k, v in found.about.items()},
        "layout": None if found.layout is None else pack(found.layout, tensors),
        "pictures": len(found.pictures),
    }
    numbers = torch.from_numpy(np.ascontiguousarray(values.to_numpy()))
    save_file({"values": numbers}, folder / "values.safetensors")
    for i, picture in enumerate(found.pictures):
        picture.save(folder / f"picture-{i}.png")
    (folder / _NAME).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def load(folder: str | Path) -> dict[str, Any]:
    """The fields of `Scores`; see `Scores.load`."""
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / _NAME).is_file():
        raise VLMLensError(f"{folder} holds no scores: they are written by Scores.save(folder).")
    try:
        data = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        numbers = load_file(folder / "values.safetensors")["values"].numpy()
        coords = {k: (c["dims"], c["values"]) for k, c in data["coords"].items()}
        values = xr.DataArray(numbers, dims=data["dims"], coords=coords)
        pictures = []
        for i in range(data["pictures"]):
            with Image.open(folder / f"picture-{i}.png") as picture:
                pictures.append(picture.copy())
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise VLMLensError(f"The scores in {folder} are damaged: {error}.") from None
    return {
        "values": values,
        "name": data["name"],
        "space": data["space"],
        "marked": {k: tuple(v) for k, v in data["marked"].items()},
        "about": data["about"],
        "layout": None if data["layout"] is None else unpack(data["layout"], {}),
        "pictures": tuple(pictures),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else str(value)
