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

from vlm_lens.scores.labelled import labels_of
from vlm_lens.serial import pack, unpack
from vlm_lens.storage.files import (
    FileError,
    as_path,
    current,
    read_json,
    read_tensors,
    write_tensors,
    write_whole,
    written_together,
)

if TYPE_CHECKING:
    from torch import Tensor

_AS_THEY_ARE = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that a PNG holds
_NAME, _VALUES, _SET = "scores.json", "values.safetensors", "scores"


def save(found: Any, folder: str | Path) -> Path:
    """Writes the fields of `Scores`; see `Scores.save`."""
    values, folder = found.values, as_path(folder)
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
    with written_together(folder, _SET) as whole:
        write_tensors(whole / _VALUES, {"values": numbers})
        for i, picture in enumerate(found.pictures):
            shown = picture if picture.mode in _AS_THEY_ARE else picture.convert("RGB")
            shown.save(whole / f"picture-{i}.png")
        write_whole(whole / _NAME, json.dumps(data, indent=1, ensure_ascii=False))
    return folder


def load(folder: str | Path) -> dict[str, Any]:
    """The fields of `Scores`; see `Scores.load`."""
    folder = as_path(folder)
    described = current(folder / _NAME, _SET)
    if not described.is_file():
        raise FileError(f"{folder} holds no scores: they are written by Scores.save(folder).")
    data = read_json(described)
    numbers = read_tensors(current(folder / _VALUES, _SET))[0]
    try:
        numbers = numbers["values"].numpy()
        coords = {
            k: (c["dims"], labels_of(v) if isinstance(v := c["values"], list) else v)
            for k, c in data["coords"].items()
        }
        values = xr.DataArray(numbers, dims=data["dims"], coords=coords)
        pictures = []
        for i in range(data["pictures"]):
            with Image.open(current(folder / f"picture-{i}.png", _SET)) as picture:
                pictures.append(picture.copy())
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise FileError(f"The scores in {folder} are damaged: {error!r}.") from None
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
