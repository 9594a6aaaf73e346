"""What a sweep gives: one row a variant and row of the prompt, in the order given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_lens.errors import VLMLensError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from PIL import Image

    from vlm_lens.layout.layout import Layout
    from vlm_lens.scores.scores import Scores


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The measurements of a sweep.

    Attributes:
        records: One dictionary for each variant and row of the prompt: labels, then measurements.
        engines: How many variants each engine computed.
        reasons: Why variants were not replayed: reason -> how many.
        baseline: The measurements of the run without interventions, one a row of the prompt.
        label_names: Which columns are labels.
        complete: Whether every variant was measured; not so after an interruption.
        places: Label in the column `at` -> whose positions, and (row, position) for each row of
            the prompt, where it means one place of each.
        layouts: The layout of each row of the prompt.
        pictures: The pictures of each row of the prompt.
    """

    records: Sequence[Mapping[str, Any]]
    engines: Mapping[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    baseline: Sequence[Mapping[str, Any]] = ()
    label_names: tuple[str, ...] = ()
    complete: bool = True
    places: Mapping[str, tuple[str, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    pictures: Sequence[Sequence[Image.Image]] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def to_dataframe(self) -> pd.DataFrame:
        """The records as a DataFrame; columns that hold tensors are left out."""
        import pandas as pd

        plain = [{k: v for k, v in r.items() if not isinstance(v, Tensor)} for r in self.records]
        return pd.DataFrame(plain)

    def stack(self, column: str) -> Tensor:
        """One column as a tensor whose first axis counts records.

        Raises:
            VLMLensError: No such column, or one that holds no numbers.
        """
        if not self.records or column not in self.records[0]:
            raise VLMLensError(f"There is no column {column!r}; there are {list(self.columns)}.")
        values = [r[column] for r in self.records]
        if isinstance(values[0], Tensor):
            return torch.stack(values)
        return torch.tensor(values)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of labels and measurements."""
        return tuple(self.records[0]) if self.records else ()

    @property
    def positions(self) -> dict[str, tuple[int, str]]:
        """Label in the column `at` -> position and token in the first row, in the text."""
        found = {}
        for label, (space, pairs) in self.places.items():
            if space == "text":
                layout, (_, position) = self.layouts[0], pairs[0]
                known = layout.strings or tuple(map(str, layout.token_ids))
                found[label] = (position - layout.shifted, known[position])
        return found

    def scores(self, value: str | None = None, *, row: int = 0) -> Scores:
        """A measurement by block, head and position: ranked, drawn over the picture, saved.

        Args:
            value: Which column; the first measured number by default.
            row: Which row of the prompt.

        Returns:
            Scores by what varies among `layer`, `head`, `position` (where each label means one
            place), `scale`, and `variant` for all other labels; NaN where nothing was measured.
            `about` has the value without interventions.

        Raises:
            ScoresError: No such row, no such number, or variants of equal labels.
        """
        from vlm_lens.sweep.coordinates import Swept, scores_of

        swept = Swept(
            self.records, self.label_names, self.baseline, self.places, self.layouts, self.pictures
        )
        return scores_of(swept, value, row)

    def plot(self, value: str | None = None) -> go.Figure:
        """A measurement against the layer, or layers by positions as a heatmap.

        Args:
            value: Which column; the first measured number by default.

        Raises:
            VLMLensError: No such column, or more labels than a figure can show.
        """
        from vlm_lens.figures.sweep import sweep_figure

        return sweep_figure(
            self.records, value, labels=self.label_names, baseline=self.baseline,
            places=self.positions,
        )  # fmt: skip

    def __repr__(self) -> str:
        used = ", ".join(f"{n} by {engine}" for engine, n in self.engines.items())
        why = "; ".join(f"{reason} ({n})" for reason, n in self.reasons.items())
        lines = [f"SweepResult: {len(self)} records, {used}" + (f"; {why}" if why else "")]
        if not self.complete:
            lines.append("interrupted: the records are those that were finished")
        lines.append(self.to_dataframe().head(12).to_string(index=False))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, max_rows=40)
