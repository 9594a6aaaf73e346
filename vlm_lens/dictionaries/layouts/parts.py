"""What readers of published layouts share: tensors by name, and points out of module names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.integers import as_integer
from vlm_lens.storage.files import FileError, read_json

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(?P<layer>\d+)(?:\.(?P<part>[a-z_]+))?$")
_PARTS = {None: "hook_resid_post", "mlp": "hook_mlp_out"} | dict.fromkeys(
    ("self_attn", "attn", "attention"), "hook_attn_out"
)


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        tensors: The tensors of a `SparseCoder`, by name.
        point: Which point the files say it reads; empty where they do not say.
        point_out: Which point it reconstructs; `point` by default.
        model: Which model the files name.
        module: The module whose output it was made for, where they name one.
        labels: What features are about.
        unsaid: Why `k` has to be given; empty where the files say it.
        transcodes: Whether it reconstructs another point than it reads.
        nowhere: Why the files name no point, where they name what is none here.
    """

    tensors: dict[str, Tensor]
    point: str = ""
    point_out: str = ""
    model: str = ""
    module: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    unsaid: str = ""
    transcodes: bool = False
    nowhere: str = ""


class Reader(ABC):
    """A layout: what its files are called, and how they are read."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]  # the weights last
    ending: ClassVar[str] = ""  # of a file that is one dictionary, after its name

    def matches(self, folder: Path) -> bool:
        """Whether a folder is of this layout: the weights are there under their name."""
        return (folder / self.files[-1]).is_file()

    @abstractmethod
    def read(self, folder: Path, origin: str) -> Found:
        """What a folder holds.

        Args:
            folder: The folder.
            origin: Hub id and name, for what only these say.

        Raises:
            DictionaryError: A kind of dictionary that is not read, or a damaged folder.
        """


def config(path: Path) -> dict[str, Any]:
    """A JSON file that holds settings.

    Raises:
        DictionaryError: There is none, or it holds something else.
    """
    try:
        found = read_json(path)
    except FileError as error:
        raise DictionaryError(str(error)) from None
    if not isinstance(found, dict):
        raise DictionaryError(f"{path} holds no settings but a {type(found).__name__}.")
    return found


def named(tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Tensors under our names.

    Args:
        tensors: Those of a file.
        names: Our name -> the file's.
        path: The file, for messages.

    Raises:
        DictionaryError: One is missing.
    """
    if lost := [theirs for theirs in names.values() if theirs not in tensors]:
        raise DictionaryError(
            f"{path} has no tensor {lost[0]!r}; it has {', '.join(sorted(tensors))}."
        )
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def number(k: Any) -> Tensor:
    """How many features stay, as a tensor.

    Args:
        k: What files say of it or a user; some write whole numbers as 64.0.

    Raises:
        DictionaryError: No whole number.
    """
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    return torch.tensor(as_integer(whole, "k, how many features stay,", DictionaryError))


def point_of_module(module: str) -> str:
    """The point that is a module's output: `layers.3` -> `blocks.3.hook_resid_post`.

    Empty where the name is of another form.
    """
    match = _LAYER.search(module)
    if not match:
        return ""
    part = _PARTS.get(match["part"])
    return f"blocks.{match['layer']}.{part}" if part else ""


def own_part(module: str) -> str:
    """A module's name from `layers.` on, as it ends in every model that has it."""
    match = _LAYER.search(module)
    return module[match.start() :].lstrip(".") if match else ""


__all__ = ["Found", "Reader", "config", "named", "number", "own_part", "point_of_module"]
