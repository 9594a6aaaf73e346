"""What a measure is, and what it is on one model and one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.joining import Cell
from vlm_lens.engine.replay import Replayed
from vlm_lens.engine.start import Start
from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.layout import Layout
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import Savable
from vlm_lens.storage.fingerprint import fingerprint

Record = dict[str, Any]  # column -> value, of one row of the prompt


class MeasureError(VLMLensError):
    """A measure that is not known, or that does not fit."""


class Measure(Savable, ABC):
    """What is asked of a run: a frozen value, usable on any prompt.

    Attributes:
        differentiable: Whether `bind(...).values` gives a tensor through which gradients flow.
    """

    differentiable: ClassVar[bool] = False

    @abstractmethod
    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        """This measure on a model and a prompt.

        Raises:
            MeasureError: It does not fit them; nothing has been computed then.
        """

    def identity(self) -> str:
        """A text that is the same for equal measures, and in another process.

        Own functions count by name, code, and what they close over; see `fingerprint`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return f"{type(self).__qualname__} {fingerprint(type(self), values)}"


class BoundMeasure(ABC):
    """A measure on one model and one prompt: what must be run for it, and what it makes of that.

    Attributes:
        columns: The names of its columns, where they are known before a run.
        n_last: At how many of the last positions it needs logits.
        goes_on: Whether the model runs on after the prompt, so that keys and values are kept.
        cells: Point name -> row and position of the activations that it reads.
    """

    columns: tuple[str, ...] = ()
    n_last: int = 1
    goes_on: bool = False
    cells: Mapping[str, Sequence[Cell]] = {}

    def refuses(self, start: Start) -> str:
        """Why a variant that starts there cannot be replayed for it; empty if it can."""
        return ""

    @abstractmethod
    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        """The records of the plain run, one a row of the prompt; none if it does not measure it.

        Args:
            baseline: The run, where it was recorded.
        """

    @abstractmethod
    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        """For each variant replayed, its records."""

    @abstractmethod
    def of_run(self, interventions: Any) -> list[Record]:
        """The records of a variant, from a run of its own."""


class LogitMeasure(Measure):
    """A measure of the logits at a prompt's last positions.

    `values` and `records` are given what `resolved` made of the measure's tokens.

    Attributes:
        of_each_row: Whether a row's record is made of its logits alone, so that the rows of many
            variants can be measured together.
    """

    of_each_row: ClassVar[bool] = False

    @property
    def n_last(self) -> int:
        """At how many of the last positions it needs logits."""
        return 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns, where they are known before a run."""
        return ()

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundLogits:
        """This measure on a model and a prompt.

        Raises:
            MeasureError: It asks for more positions than a row has, or for tokens that there are
                not.
        """
        for layout in prompt.layouts:
            if (n_real := layout.last - layout.start + 1) < self.n_last:
                raise MeasureError(
                    f"{self!r} reads the last {self.n_last} positions; row {layout.row} of the "
                    f"prompt has {n_real}."
                )
        return BoundLogits(self, vlm, prompt, self.resolved(vlm, prompt))

    def resolved(self, vlm: HookedModel, prompt: Prompt) -> Any:
        """The measure's tokens as ids of a model; whatever `values` and `records` need."""
        return None

    def values(
        self, logits: Float[Tensor, "row pos d_vocab"], tokens: Any
    ) -> Float[Tensor, " row"]:
        """One number a row of the prompt, differentiable if the measure says so.

        Raises:
            MeasureError: The measure gives no such number.
        """
        raise MeasureError(f"{type(self).__name__} gives no number to differentiate.")

    @abstractmethod
    def records(
        self, vlm: HookedModel, logits: Float[Tensor, "row pos d_vocab"], tokens: Any
    ) -> list[Record]:
        """The columns of each row of the prompt."""


@dataclass
class BoundLogits(BoundMeasure):
    """A measure of logits on a model and a prompt.

    Attributes:
        measure: The measure.
        vlm: The model.
        prompt: The prompt.
        tokens: The measure's tokens as ids.
    """

    measure: LogitMeasure
    vlm: HookedModel
    prompt: Prompt
    tokens: Any = None

    def __post_init__(self):
        self.n_last, self.columns = self.measure.n_last, self.measure.columns

    def values(self, logits: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, " row"]:
        """One number a row of the prompt.

        Args:
            logits: At the last `n_last` positions of each row; see `at_last`.
        """
        return self.measure.values(logits, self.tokens)

    def records(self, logits: Float[Tensor, "row pos d_vocab"]) -> list[Record]:
        """The columns of each row of the prompt, from logits as `values` takes them."""
        return self.measure.records(self.vlm, logits, self.tokens)

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        """From the recorded logits, or from a run."""
        if baseline is None:
            return self.of_run(())
        return self.records(at_last(baseline.logits, self.prompt.layouts, self.n_last))

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        """From the replayed logits."""
        if not self.measure.of_each_row:
            return [self.records(logits) for logits in replayed.logits]
        n_rows = replayed.logits.shape[1]
        records = self.records(replayed.logits.flatten(0, 1))
        return [records[i : i + n_rows] for i in range(0, len(records), n_rows)]

    def of_run(self, interventions: Any) -> list[Record]:
        """From the logits of a run."""
        # of a large vocabulary, logits that nobody sees are what costs
        at_the_end = all(layout.last == len(layout) - 1 for layout in self.prompt.layouts)
        seen = self.n_last if at_the_end else None
        logits = self.vlm.run(self.prompt, interventions=interventions, last_logits=seen)
        return self.records(at_last(logits, self.prompt.layouts, self.n_last))


def at_last(
    logits: Float[Tensor, "row pos d_vocab"], layouts: Sequence[Layout], n_last: int = 1
) -> Float[Tensor, "row last d_vocab"]:
    """Logits at the last positions of each row that are not padding, in reading order.

    Args:
        logits: At every position of the prompt, or at its last ones.
        layouts: The layouts of its rows.
        n_last: How many positions.
    """
    length = len(layouts[0])
    last = torch.tensor([layout.last for layout in layouts])
    if (last == length - 1).all():
        return logits[:, -n_last:]
    index = last[:, None] - torch.arange(n_last - 1, -1, -1) - (length - logits.shape[1])
    return logits[torch.arange(len(layouts))[:, None], index.to(logits.device)]
