"""Several lenses on the same states, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import Position
from vlm_lens.lenses.base import Lens, LensError
from vlm_lens.lenses.result import LensResult
from vlm_lens.terms import Layer

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class LensComparison:
    """What several lenses say of one prompt, at the same layers and positions.

    Attributes:
        results: Name of the lens -> what it found.
    """

    results: Mapping[str, LensResult]

    def __getitem__(self, name: str) -> LensResult:
        return self.results[name]

    def plot_image(
        self,
        image: int = 0,
        *,
        columns: int = 2,
        layer: Layer | str = -1,
        row: int = 0,
        grid: int | None = None,
    ) -> go.Figure:
        """The picture once a lens, with the top entry of each patch; a slider for the layer.

        Args:
            image: Which picture of the prompt.
            row: Which prompt of a batch.
            grid: Which of the picture's grids.
            layer: Which layer is shown at first; the last by default.
            columns: How many stand side by side.

        Raises:
            PositionError: No such picture, or nothing of it was read.
            PointError: No such layer.
        """
        from vlm_lens.figures.lens import lens_comparison_figure

        words = {name: result.words(row) for name, result in self.results.items()}
        first = next(iter(self.results.values())).index(layer)
        return lens_comparison_figure(words, image=image, grid=grid, first=first, columns=columns)

    def to_dataframe(self) -> pd.DataFrame:
        """The tables of all lenses, one below another, with a column `lens`."""
        import pandas as pd

        tables = [r.to_dataframe().assign(lens=name) for name, r in self.results.items()]
        return pd.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        return f"LensComparison({', '.join(self.results)})"


@answering
def compare_lenses(
    vlm: HookedModel,
    prompt: Any,
    lenses: Mapping[str, Lens] | Sequence[Lens],
    images: Any = None,
    *,
    at: Position | int | Sequence[int] | None = None,
    k: int = 10,
) -> LensComparison:
    """Reads the same states through several lenses.

    Args:
        vlm: A HookedVLM.
        prompt: A Prompt, text, or a processor's output.
        lenses: Name -> lens, or lenses, which are then called by their class.
        images: Pictures, where `prompt` is text.
        at: Which positions, for all lenses; all by default.
        k: How many entries are kept, of all lenses.

    Raises:
        LensError: No lenses, two of one name, or lenses of different points.
    """
    listed = lenses.values() if isinstance(lenses, Mapping) else lenses
    if other := next((x for x in listed if not isinstance(x, Lens)), None):
        raise LensError(f"A lens is LogitLens() or another, not {other!r:.60}.")
    named = lenses if isinstance(lenses, Mapping) else {lens.name: lens for lens in lenses}
    if not named or len(named) < len(lenses):
        raise LensError(
            "Give at least one lens, and several of one class by name: {'early': lens, ...}."
        )
    made = vlm.as_prompt(prompt, images)
    chosen = {name: replace(lens, at=at, k=k) for name, lens in named.items()}
    points = {name: tuple(lens.names(vlm)) for name, lens in chosen.items()}
    if len(set(points.values())) > 1:
        told = "; ".join(f"{name} at {len(names)} points" for name, names in points.items())
        raise LensError(f"Lenses are compared at the same points: {told}.")
    return LensComparison({name: lens.run(vlm, made) for name, lens in chosen.items()})


__all__ = ["LensComparison", "compare_lenses"]
