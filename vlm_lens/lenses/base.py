"""What every lens is: which states it reads, and what it makes of them.

```
prompt --run--> states h[point, position] --Lens.read--> Reading: the k entries that lead, with
                                                         their values, and those of chosen tokens
```

An entry is a token of the vocabulary; a lens that has others (labels, texts) says what they are
called. All that differs between lenses is in two methods: `names` and `read`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.errors import PointError, PositionError, VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer, is_integer
from vlm_lens.interventions.base import freeze_points
from vlm_lens.keywords import Answering, answering
from vlm_lens.layout.kinds import Kind
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.lenses.result import LensResult, LensRow
from vlm_lens.tokens import string_token

_CELLS = 1 << 24  # positions x entries in memory at a time


class LensError(VLMLensError):
    """A lens that does not fit the model, or that cannot be fitted as asked."""


@dataclass(frozen=True)
class States:
    """Hidden states of one prompt at one point.

    Attributes:
        values: The states.
        point: Where they were read.
        kinds: What stands at each position: `"text"`, `"special"`, `"image 0"`, ...
        logits: What the model itself says at these positions; `None` in the tower.
    """

    values: Float[Tensor, "positions d_model"]
    point: str
    kinds: tuple[Kind, ...]
    logits: Float[Tensor, "positions d_vocab"] | None


@dataclass(frozen=True)
class Reading:
    """What a lens makes of states.

    Attributes:
        top_ids: The leading entries, first the best.
        top_probs: Their values, in the lens's own measure.
        token_probs: The values of the chosen tokens.
        token_ranks: How many entries lead each of them.
        entropy: Of the distribution over all entries, in nats, where there is one.
        kl: KL(model's own distribution || lens's), in nats, likewise.
        sources: Of each leading entry the number of what it was found by, where there is such.
        labels: What entries are called that are no tokens of the vocabulary.
    """

    top_ids: Int[Tensor, "positions k"]
    top_probs: Float[Tensor, "positions k"]
    token_probs: Float[Tensor, "positions tokens"]
    token_ranks: Int[Tensor, "positions tokens"]
    entropy: Float[Tensor, " positions"] | None = None
    kl: Float[Tensor, " positions"] | None = None
    sources: Int[Tensor, "positions k"] | None = None
    labels: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lens(Answering, ABC):
    """Reads the states of a run.

    Attributes:
        points: Which points are read.
        at: Which positions; all by default.
        k: How many of the leading entries are kept.
        tokens: Tokens (ids, or texts of one token) whose value and rank are kept too.
    """

    points: str | tuple[str, ...] = "blocks.*.hook_resid_post"
    at: Position | int | Sequence[int] | None = None
    k: int = 10
    tokens: tuple[str | int, ...] = ()

    measure: ClassVar[str] = "probability"  # what the values of entries are
    title: ClassVar[str] = "What each layer would say next"
    space: ClassVar[str] = "text"  # whose positions are read

    def __post_init__(self):
        points = freeze_points(self.points)
        object.__setattr__(self, "points", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", All() if self.at is None else as_position(self.at))
        if as_integer(self.k, "k", LensError) < 1:
            raise LensError(f"k, how many tokens are shown, must be at least 1, not {self.k}.")
        one = isinstance(self.tokens, str) or is_integer(self.tokens)
        tokens = (self.tokens,) if one else tuple(self.tokens)
        object.__setattr__(self, "tokens", tokens)

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        return type(self).__name__

    # ------------------------------------------------------------------ what a lens defines

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are read, in order; each is as wide as the residual stream.

        Raises:
            PointError: One is not.
            LensError: The lens was made for another model.
        """
        table = vlm.architecture.points
        names = table.match(list(freeze_points(self.points)))
        for name in names:
            if table[name].space != "text" or table[name].sizes[2:] != (vlm.cfg.d_model,):
                raise PointError(
                    f"{name} has shape {table[name].shape}; the lens decodes the language model's "
                    f"residual stream, [batch, pos, {vlm.cfg.d_model}]."
                )
        return names

    @abstractmethod
    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """What the lens makes of states.

        Args:
            vlm: The model.
            states: Its states at one point.
            tokens: Ids of the chosen tokens.
        """

    def check_last(self, vlm: HookedModel, states: States) -> None:
        """Refuses a run whose last states do not give the model's logits, where that matters."""
        return

    def token_ids(self, vlm: HookedModel) -> list[int]:
        """The ids of the chosen tokens."""
        return [vlm.to_token_id(token) for token in self.tokens]

    def labels(self, vlm: HookedModel, ids: set[int]) -> dict[int, str]:
        """What entries are called."""
        return {i: string_token(vlm.tokenizer, i) if vlm.tokenizer else str(i) for i in ids}

    def source_labels(self, vlm: HookedModel, ids: set[int]) -> dict[int, str]:
        """What the numbers in `Reading.sources` stand for."""
        return {}

    # ------------------------------------------------------------------ running it

    @torch.no_grad()
    @answering
    def run(
        self, vlm: HookedModel, prompt: Any, images: Any = None, *, interventions: Any = ()
    ) -> LensResult:
        """Reads a prompt, or each row of a batch.

        Args:
            vlm: A HookedVLM.
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            interventions: What to change in the run that is read.

        Raises:
            LensError: The lens was made for another model; or it decodes into the vocabulary, and
                the last layer does not give the model's logits, so no layer's decoding could be
                trusted.
            PointError: A point that is not as wide as the residual stream.
        """
        from vlm_lens.scores.places import places  # xarray comes with it

        prompt = vlm.as_prompt(prompt, images)
        names = self.names(vlm)
        token_ids = self.token_ids(vlm)
        where = [self.at.resolve(layout, self.space) for layout in prompt.layouts]
        if not all(where):
            raise PositionError(f"{self.at} holds no position of this prompt to decode.")
        last = vlm.architecture.points.match(["blocks.*.hook_resid_post"])[-1]
        read = list(dict.fromkeys([*names, *([last] if self.space == "text" else ())]))
        logits, cache = vlm.run_with_cache(prompt, names_filter=read, interventions=interventions)
        rows, labels = [], {}
        for layout, pairs in zip(prompt.layouts, where, strict=True):
            index = [row for row, _ in pairs], [p for _, p in pairs]
            kinds = tuple(place.kind for place in places(layout, self.space, pairs))
            own = logits[index] if self.space == "text" else None
            at = {
                name: States(cache[name][index].to(logits.device), name, kinds, own)
                for name in read
            }
            if self.space == "text":
                self.check_last(vlm, at[last])
            readings = [self.read(vlm, at[name], token_ids) for name in names]
            in_rows = () if self.space == "text" else tuple(index[0])
            rows.append(_row(layout, index[1], in_rows, readings))
            for reading in readings:
                labels |= reading.labels
        shown = {*token_ids, *(int(i) for r in rows for i in r.top_ids.unique())} - labels.keys()
        sources = {int(i) for r in rows if r.sources is not None for i in r.sources.unique()}
        return LensResult(
            tuple(names),
            tuple(rows),
            tuple(token_ids),
            labels | self.labels(vlm, shown),
            tuple(prompt.images or ((),) * len(prompt)),
            vlm.name,
            lens=self.name,
            measure=self.measure,
            title=self.title,
            sources=self.source_labels(vlm, sources),
            space=self.space,
        )


def ranked(values: Float[Tensor, "positions entries"], k: int, tokens: Sequence[int]) -> Reading:
    """The leading entries of values, and the values and ranks of some."""
    top = values.topk(min(k, values.shape[-1]), dim=-1)
    mine = values[:, list(tokens)]
    ranks = torch.zeros_like(mine, dtype=torch.long)
    for i in range(len(tokens)):
        ranks[:, i] = (values > mine[:, [i]]).sum(-1)
    return Reading(top.indices.cpu(), top.values.cpu(), mine.cpu(), ranks.cpu())


def in_blocks(read: Callable[[States], Reading], states: States, width: int) -> Reading:
    """A reading made of parts, so that positions x entries fit into memory.

    Args:
        read: Reads some states.
        states: All of them.
        width: How many entries there are.
    """
    size, n = max(1, _CELLS // width), len(states.values)
    parts = []
    for start in range(0, n, size):
        part = slice(start, start + size)
        logits = None if states.logits is None else states.logits[part]
        parts.append(read(States(states.values[part], states.point, states.kinds[part], logits)))
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {"labels": {k: v for one in parts for k, v in one.labels.items()}}
    for name in (f.name for f in fields(Reading) if f.name != "labels"):
        found = [getattr(one, name) for one in parts]
        joined[name] = None if found[0] is None else torch.cat(found)
    return Reading(**joined)


def _row(
    layout: Layout, positions: list[int], in_rows: tuple[int, ...], readings: list[Reading]
) -> LensRow:
    def stacked(name: str) -> Tensor | None:
        found = [getattr(one, name) for one in readings]
        return None if found[0] is None else torch.stack(found)

    return LensRow(
        layout,
        tuple(positions),
        stacked("top_ids"),
        stacked("top_probs"),
        stacked("token_probs"),
        stacked("token_ranks"),
        stacked("entropy"),
        stacked("kl"),
        stacked("sources"),
        in_rows,
    )


__all__ = ["Lens", "LensError", "Reading", "States", "in_blocks", "ranked"]
