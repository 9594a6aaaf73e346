"""Activations, as they are under each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.joining import Cell
from vlm_lens.engine.replay import Replayed
from vlm_lens.engine.start import Start
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.measures.base import BoundMeasure, Measure, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import savable

_PACKED = "attention of a tower that reads all pictures as one sequence is captured in full runs"


@savable
@dataclass(frozen=True)
class Capture(Measure):
    """Activations, as they are under each variant: a column a point, on the CPU.

    A column is `[positions, ...]`; of a pattern, `[head, positions, key]`.

    Attributes:
        points: A point, a glob or several.
        at: Where; as many positions in each row of the prompt.
    """

    points: str | tuple[str, ...]
    at: Position | int | Sequence[int]

    def __post_init__(self) -> None:
        points = (self.points,) if isinstance(self.points, str) else tuple(self.points)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "at", as_position(self.at))

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        """This measure on a model and a prompt."""
        return _BoundCapture(self, vlm, prompt)


class _BoundCapture(BoundMeasure):
    def __init__(self, measure: Capture, vlm: HookedModel, prompt: Prompt):
        self._measure, self._vlm, self._prompt = measure, vlm, prompt
        self._points = vlm.architecture.points
        self._plain: list[Record] = []

    def refuses(self, start: Start) -> str:
        packed = self._vlm.family.packs_pictures(self._vlm.hf_model.config)
        if not packed or start.tower is None:
            return ""
        tower = (self._points[n] for n in self.cells if self._points[n].space != "text")
        return _PACKED if any(point.on_demand for point in tower) else ""

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        self._plain = self.of_run(())
        self.cells = {
            name: [
                cell
                for layout in self._prompt.layouts
                for cell in self._measure.at.resolve(layout, self._points[name].space)
            ]
            for name in self._plain[0]
        }
        return self._plain

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        return [self._changed(read) for read in replayed.read]

    def of_run(self, interventions: Any) -> list[Record]:
        _, cache = self._vlm.run_with_cache(
            self._prompt, names_filter=list(self._measure.points), positions=self._measure.at,
            device="cpu", interventions=interventions,
        )  # fmt: skip
        return [{name: cache[name][row] for name in cache} for row in range(len(self._prompt))]

    def _changed(self, read: Mapping[str, Mapping[Cell, Tensor]]) -> list[Record]:
        """The plain run's columns but for what was read anew."""
        records = [{name: value.clone() for name, value in row.items()} for row in self._plain]
        for name, found in read.items():
            n_cells = len(self.cells[name]) // len(records)
            axis = 1 if "query" in self._points[name].axes else 0
            for i, cell in enumerate(self.cells[name]):
                if cell in found:
                    column = records[i // n_cells][name]
                    column.select(axis, i % n_cells).copy_(found[cell])
        return records
