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
        positions: Label in the column `at` -> position and token in the first row, where it
            means one position of the text.
    """

    records: Sequence[Mapping[str, Any]]
    engines: Mapping[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    baseline: Sequence[Mapping[str, Any]] = ()
    label_names: tuple[str, ...] = ()
    complete: bool = True
    positions: Mapping[str, tuple[int, str]] = field(default_factory=dict)

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
