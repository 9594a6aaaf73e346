"""Qwen-Scope: one `layer<n>.sae.pt` a block, TopK.

```
Qwen/SAE-Res-<model>-W<width>-L0_<k>/
    layer<n>.sae.pt       W_enc [f, d], b_enc [f], W_dec [d, f], b_dec [d]
```

The features that stay are the `k` largest `x W_enc^T + b_enc`, whatever their sign. `k` stands in
the repository's name alone. The file is read by `torch.load(weights_only=True)`, which runs none of
what a pickle may hold.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from vlm_lens.dictionaries.layouts.parts import Found, Reader, named, number
from vlm_lens.dictionaries.value import DictionaryError

_FILE = re.compile(r"layer(?P<layer>\d+)\.sae\.pt$")
_REPO = re.compile(r"SAE-Res-(?P<model>.+?)-W\d+K-L0_(?P<k>\d+)")
_NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}


class QwenScope(Reader):
    """Reads files of `Qwen/SAE-Res-*`."""

    name = "Qwen-Scope"
    files = ("*.sae.pt",)
    ending = ".sae.pt"

    def matches(self, folder: Path) -> bool:
        """Whether it is, or holds, such a file."""
        return bool(_FILE.search(folder.name)) or any(folder.glob("*.sae.pt"))

    def read(self, folder: Path, origin: str) -> Found:
        """The dictionary of a file, or of a folder with one.

        Raises:
            DictionaryError: Several files, or one that holds more than tensors.
        """
        path = folder
        if folder.is_dir():
            there = sorted(folder.glob("*.sae.pt"))
            if len(there) > 1:
                names = ", ".join(p.name.removesuffix(".sae.pt") for p in there)
                raise DictionaryError(f"{folder} holds {names}: name one.")
            path = there[0]
        held, match = _loaded(path), _FILE.search(path.name)
        tensors = named(held, _NAMES, path)
        repo = _REPO.search(f"{origin} {path.resolve()}")
        unsaid = ""
        if repo:
            tensors["k"] = number(int(repo["k"]))
        else:
            unsaid = (
                f"{path} does not say how many features stay, and no part of its path is called "
                "...-L0_<k>, as the repositories of Qwen-Scope are: give k=."
            )
        tensors["signed"] = torch.ones(())
        tensors |= {name: tensors[name].T for name in ("w_enc", "w_dec")}
        point = f"blocks.{match['layer']}.hook_resid_post" if match else ""
        return Found(tensors, point, point, f"Qwen/{repo['model']}" if repo else "", unsaid=unsaid)


def _loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch has saved; code in it is not run.

    Raises:
        DictionaryError: It holds something else than a dictionary of tensors.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DictionaryError(
            f"{path} holds more than tensors, Python objects that would have to be run, and was "
            "not read."
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise DictionaryError(f"{path} cannot be read: {error}.") from None
    if not isinstance(held, dict):
        raise DictionaryError(f"{path} holds a {type(held).__name__}, not tensors by name.")
    return held


__all__ = ["QwenScope"]
