"""What says which recipe it was: its fields as JSON data, by content where a name is not enough."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from typing import Any

from PIL import Image

from vlm_lens.tasks import Task

__all__ = ["digest", "plain"]


def plain(value: Any) -> Any:
    """A field as JSON data, the same in every process.

    Tasks and pictures are told by a digest of their content, functions by module and name, models
    by their name.

    Args:
        value: A field of a recipe.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Task):
        return _task(value)
    if isinstance(value, Image.Image):
        return {"picture": digest((value.mode, list(value.size)), value.tobytes())}
    if hasattr(value, "hf_model"):  # a HookedVLM
        return {"model": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    if type(value).__repr__ is object.__repr__:  # it would hold an address
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return repr(value)


def digest(data: Any, *more: bytes) -> str:
    """A fingerprint of JSON data and bytes."""
    made = hashlib.sha256(json.dumps(data, ensure_ascii=False, sort_keys=True).encode())
    for one in more:
        made.update(one)
    return made.hexdigest()[:16]


def _task(task: Task) -> dict[str, Any]:
    """A task by its name, size, and all of it on which prompts and judging depend."""
    about = (task.instruction, task.task_word, task.domain, plain(task.template))
    splits = {
        split: [
            (row.input, row.answers, row.description, row.width, row.picture_digest)
            for row in task.rows(split)
        ]
        for split in ("validation", "test")
    }
    return {"task": task.name, "rows": len(task), "digest": digest((about, splits))}
