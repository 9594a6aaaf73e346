"""Finished runs in folders: found again, and refused if not one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.recipes import Result
from vlm_lens.reproduce.identity import identity
from vlm_lens.reproduce.setup import ReproduceError, Setup
from vlm_lens.storage.files import write_whole
from vlm_lens.storage.folder import RunFolder, differences

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe

__all__ = ["Store"]

_HOLDS = "results of reproduce"
_PLOTLY = "plotly.min.js"


class Store:
    """The results of one model, a context manager: the folder is this process's until it ends.

    The folder belongs to one model with one setup, which its manifest says; the same command on
    the same folder goes on where it was.

    Args:
        folder: The model's folder.
        setup: What it is run on.
        vlm: The model.

    Raises:
        ReproduceError: On entering: the folder holds results of another model, setup
            or version, or another process is at work in it.
    """

    def __init__(self, folder: Path, setup: Setup, vlm: HookedModel) -> None:
        self.folder = folder
        self._run = RunFolder(folder, identity(setup, vlm), holds=_HOLDS, error=ReproduceError)

    def __enter__(self) -> Self:
        self._run.__enter__()
        plotly = self.folder.parent / _PLOTLY  # one copy for all folders
        if not plotly.exists():
            from plotly.offline import get_plotlyjs

            write_whole(plotly, get_plotlyjs())
        return self

    def __exit__(self, *error: Any) -> None:
        self._run.close()

    def load(self, name: str, recipe: Recipe) -> Result | None:
        """A finished run; None if it is not there.

        Raises:
            ReproduceError: A run of this name with other settings.
        """
        folder = self.folder / "runs" / name
        if not Result.is_saved(folder):
            return None
        result = Result.load(folder)
        there, asked = result.provenance.get("recipe") or {}, recipe.to_dict()
        if there != asked:
            raise ReproduceError(
                f"{folder} was made with another {' and '.join(differences(there, asked))}: give "
                "another --out, or delete the folder."
            )
        return result

    def save(self, name: str, result: Result) -> Result:
        """Writes a run, and gives it back as it is read again."""
        folder = self.folder / "runs" / name
        return type(result).load(result.save(folder, plotlyjs=f"../../../{_PLOTLY}"))
