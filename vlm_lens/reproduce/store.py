"""Finished runs in folders: written whole or not at all, found again, refused if not one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import model_facts
from vlm_lens.reproduce.identity import (
    library_versions,
    named_model_facts,
    processor_digest,
    weights_digest,
)
from vlm_lens.reproduce.setup import ReproduceError, Setup

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe, Result

__all__ = ["Store"]

_FORMAT = "vlm_lens.reproduce/2"
_PLOTLY = "plotly.min.js"


class Store:
    """The results of one model.

    The folder belongs to one model with one setup, which `about.json` says; the same command on
    the same folder goes on where it was.

    Args:
        folder: The model's folder.
        setup: What it is run on.
        vlm: The model.

    Raises:
        ReproduceError: The folder holds results of another model, setup or version.
    """

    def __init__(self, folder: Path, setup: Setup, vlm: HookedVLM) -> None:
        self.folder = folder
        about = {
            "format": _FORMAT,
            **{f"setup: {k}": v for k, v in setup.to_dict().items()},
            **{f"model: {k}": v for k, v in model_facts(vlm).items()},
            "model: weights": weights_digest(vlm.hf_model),
            "model: processor": processor_digest(vlm),
            **{f"base: {k}": v for k, v in _facts(setup.base).items()},
            **{f"unrelated: {k}": v for k, v in _facts(setup.unrelated).items()},
            **{f"version: {k}": v for k, v in library_versions().items()},
        }
        path = folder / "about.json"
        if path.exists():
            _check_same(folder, _read(path), about)
        elif folder.exists() and any(folder.iterdir()):
            raise ReproduceError(
                f"{folder} holds files, and none says of which model: give another --out."
            )
        else:
            write_text(path, json.dumps(about, indent=1, ensure_ascii=False))
        self._plotly()  # before there are workers, which would write it at once

    def load(self, name: str, recipe: Recipe) -> Result | None:
        """A finished run; None if it is not there.

        Raises:
            ReproduceError: A run of this name with other settings.
        """
        from vlm_lens.recipes import Result

        folder = self.folder / "runs" / name
        if not folder.exists():
            return None
        result = Result.load(folder)
        here, asked = result.provenance.get("recipe"), recipe.to_dict()
        if here != asked:
            raise ReproduceError(
                f"{folder} was made with other settings ({_differences(here, asked)}): give "
                "another --out, or delete the folder."
            )
        return result

    def save(self, name: str, result: Result) -> Result:
        """Writes a run, whole or not at all, and gives it back as it is read again."""
        folder = self.folder / "runs" / name
        with_partial(folder, lambda to: result.save(to, plotlyjs=f"../../../{_PLOTLY}"))
        return type(result).load(folder)

    def _plotly(self) -> None:
        """One copy of the library that draws figures, for all folders."""
        path = self.folder.parent / _PLOTLY
        if not path.exists():
            from plotly.offline import get_plotlyjs

            write_text(path, get_plotlyjs())


def with_partial(folder: Path, write: Any) -> None:
    """Fills a folder under another name, then gives it its own, so that it is never half there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    partial.mkdir(parents=True)
    write(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _facts(name: str | None) -> dict[str, Any]:
    return {} if name is None else named_model_facts(name)


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ReproduceError(f"{path} cannot be read: {error}. Give another --out.") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ReproduceError(f"{path} was not written by reproduce: give another --out.")
    return about


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if there != here:
        raise ReproduceError(
            f"{folder} holds results of another model or with other settings "
            f"({_differences(there, here)}): give another --out, or delete the folder."
        )


def _differences(there: Any, here: Any) -> str:
    """What differs, at most three fields of it."""
    if not isinstance(there, Mapping):
        return "no settings are recorded"
    keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    told = [f"{k}: {there.get(k)!r} there, {here.get(k)!r} now" for k in keys[:3]]
    return "; ".join(told + (["..."] if len(keys) > 3 else []))
