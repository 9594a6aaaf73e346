"""Distributed alignment search: the subspace that carries a variable, learned by interchange.

```
h'  = h_base + (h_source - h_base) B^T B          B [k, d], rows orthonormal
loss = - log p(answer of the base under the source's value of the variable | h')
```

Geiger et al. 2021, 2024 (arXiv 2106.02997, 2303.02536). A high accuracy alone is no evidence: a
subspace that is fitted can route what the model never used (Makelov et al. 2023, arXiv 2311.17030;
Sutter et al. 2025, arXiv 2507.08802). So the same search is done where there is nothing to find:

- **arbitrary labels**: the answers are dealt out to the pairs anew. What is found there is what the
  search can do by itself;
- **re-initialised**: the same architecture with fresh weights. What is found there is not learned.

Accuracies that count are those on held-out pairs, whose groups (base entities, say) were not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vlm_lens.errors import VectorError
from vlm_lens.gradients import recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.interventions.interchange import Interchange
from vlm_lens.keywords import Answering, answering
from vlm_lens.layout.positions import Last, Position, as_position
from vlm_lens.measures import at_last
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.reading.many import batches, read_each
from vlm_lens.serial import FrozenTensor, Savable, savable

if TYPE_CHECKING:
    import pandas as pd

LEARNED, RANDOM, WHOLE, NONE = "learned", "random subspace", "whole space", "no interchange"
ARBITRARY, FRESH = "arbitrary labels", "re-initialised model"


@dataclass(frozen=True)
class Counterfactual(Answering):
    """A base, a source, and what the base is answered with under the source's variable.

    Attributes:
        base: A text or RawPrompt.
        source: Likewise.
        answer: The answer's first token as text, or its id.
        group: Pairs of one group are all held out or none: the base's entity, say.
    """

    base: Any
    source: Any
    answer: str | int
    group: str = ""


@savable
@dataclass(frozen=True)
class Subspace(Savable):
    """A subspace of a point's activation, with where it comes from.

    Attributes:
        data: `[directions, d]`, rows orthonormal.
        point: The point.
        at: Where it was learned.
        source: The model that it was learned on.
        note: How.
    """

    data: FrozenTensor
    point: str
    at: Position
    source: ModelFacts
    note: str = ""

    @property
    def basis(self) -> Float[Tensor, "directions d"]:
        """The rows."""
        return self.data.data

    def interchange(self, source: Any, at: Position | int | None = None) -> Interchange:
        """Sets what it carries to what it carries in a source.

        Args:
            source: The source's activation: a tensor or a cache; see `Interchange`.
            at: Where; by default where it was learned.
        """
        return Interchange(
            self.point, self.at if at is None else as_position(at), self.data, source
        )

    def overlap(self, other: Float[Tensor, "others d"]) -> float:
        """Which part of it lies in the span of other directions, between 0 and 1."""
        q = torch.linalg.qr(other.double().T).Q
        return float((self.basis.double() @ q).pow(2).sum() / len(self.basis))


@dataclass(frozen=True, eq=False)
class DasResult:
    """What distributed alignment search found, and what it finds where there is nothing.

    Attributes:
        subspace: The subspace.
        table: A row a condition: `accuracy` on held-out pairs, `fitted` on those that were used.
        chance: The share of the most frequent answer's token among held-out pairs.
        losses: The loss at each step, `[steps]`.
        about: What was searched.
    """

    subspace: Subspace
    table: pd.DataFrame
    chance: float
    losses: Tensor = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """On held-out pairs."""
        return float(self.table.loc[LEARNED, "accuracy"])

    def __repr__(self) -> str:
        about = "; ".join(f"{k} {v}" for k, v in self.about.items())
        numbers = self.table.to_string(float_format="%.2f")
        return f"DasResult({about})\n{numbers}\nmost frequent answer: {self.chance:.2f}"

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="%.2f", border=0)


@answering
def das(
    vlm: HookedModel,
    pairs: Sequence[Counterfactual],
    point: str,
    *,
    at: Position | int | None = None,
    k: int = 1,
    steps: int = 150,
    lr: float = 0.02,
    batch_size: int = 16,
    holdout: float = 0.3,
    controls: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> DasResult:
    """Learns the `k` directions of a point that carry a variable.

    Args:
        vlm: The model.
        pairs: Bases, sources and counterfactual answers.
        point: The point, by name.
        at: Where, one position of base and source; the last by default.
        k: How many directions.
        steps: Steps of Adam, one batch each.
        lr: Its learning rate.
        batch_size: Pairs a batch.
        holdout: Which part of the groups is held out.
        controls: Whether the two controls are run: each takes as long as the search.
        seed: Of the initial directions, the order, the split and the controls.
        progress: Whether to show a progress bar.

    Raises:
        VectorError: Too few pairs or groups, or a point without a residual stream's shape.
        VLMLensError: An answer that is no token, or a place that a prompt does not have.
    """
    pairs = list(pairs)
    if other := next((p for p in pairs if not isinstance(p, Counterfactual)), None):
        raise VectorError(f"pairs are Counterfactual(base, source, answer), not {other!r:.60}.")
    where = vlm.architecture.points[point]
    if where.has_heads or where.space != "text" or where.sizes[-1] is None:
        raise VectorError(
            f"{where.name} {where.shape} has no subspace [k, d] at a position of text."
        )
    if not 1 <= k <= where.sizes[-1]:
        raise VectorError(f"k is between 1 and {where.sizes[-1]}, not {k}.")
    if not 0 < holdout < 1 or steps < 1:
        raise VectorError("holdout lies between 0 and 1, and steps is at least 1.")
    place = as_position(Last() if at is None else at)
    train, test = _split(pairs, holdout, seed)
    if not train or not test:
        raise VectorError(f"{len(pairs)} pairs cannot be split: give more, of several groups.")
    search = _Search(vlm, where.name, place, k, steps, lr, batch_size, seed, progress)
    learned, losses = search.learned(train)
    draw = torch.Generator().manual_seed(seed + 1)
    other = torch.linalg.qr(torch.randn(where.sizes[-1], k, generator=draw)).Q.T
    rows: dict[str, tuple[float, float]] = {
        LEARNED: search.both(train, test, learned),
        RANDOM: search.both(train, test, other),
        WHOLE: search.both(train, test, torch.eye(where.sizes[-1])),
        NONE: search.both(train, test, None),
    }
    if controls:
        dealt = _dealt(pairs, seed)
        rest = [[replace(p, answer=dealt[id(p)]) for p in some] for some in (train, test)]
        rows[ARBITRARY] = search.both(*rest, search.learned(rest[0])[0])
        fresh = replace(search, vlm=_reinitialised(vlm, seed))
        rows[FRESH] = fresh.both(train, test, fresh.learned(train)[0])
    import pandas as pd

    table = pd.DataFrame(rows, index=["accuracy", "fitted"]).T
    answers = search.answers(test)
    chance = max(Counter(answers).values()) / len(answers)
    note = f"learned on {len(train)} pairs in {steps} steps, seed {seed}"
    subspace = Subspace(FrozenTensor(learned), where.name, place, vlm.facts, note)
    about = {"model": vlm.name, "point": where.name, "k": k, "pairs": len(train),
             "held out": len(test), "seed": seed}  # fmt: skip
    return DasResult(subspace, table, chance, losses, about)


@dataclass(frozen=True)
class _Batch:
    base: Prompt
    states: Tensor  # [pairs, 1, d]
    answers: Tensor  # [pairs]


@dataclass(frozen=True)
class _Search:
    """The search on one model."""

    vlm: HookedModel
    point: str
    at: Position
    k: int
    steps: int
    lr: float
    batch_size: int
    seed: int
    progress: bool

    def learned(self, pairs: Sequence[Counterfactual]) -> tuple[Tensor, Tensor]:
        """The basis, `[k, d]`, and the loss of each step."""
        prepared = self._batches(pairs)
        width = prepared[0].states.shape[-1]
        draw = torch.Generator().manual_seed(self.seed)
        raw = torch.randn(width, self.k, generator=draw).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.lr)
        losses, order = [], []
        for _ in tqdm(range(self.steps), desc="das", unit="step", disable=not self.progress):
            order = order or torch.randperm(len(prepared), generator=draw).tolist()
            batch = prepared[order.pop()]
            with recording():
                basis = torch.linalg.qr(raw).Q.T
                logits = self._logits(batch, basis, grad=True)
                loss = torch.nn.functional.cross_entropy(logits, batch.answers.to(logits.device))
                (raw.grad,) = torch.autograd.grad(loss, raw)  # and none at the model's own weights
            optimizer.step()
            losses.append(float(loss.detach()))
        return torch.linalg.qr(raw.detach()).Q.T, torch.tensor(losses)

    def both(
        self,
        train: Sequence[Counterfactual],
        test: Sequence[Counterfactual],
        basis: Tensor | None,
    ) -> tuple[float, float]:
        """Accuracies on held-out pairs and on those that were used."""
        return self._accuracy(test, basis), self._accuracy(train, basis)

    @torch.no_grad()
    def _accuracy(self, pairs: Sequence[Counterfactual], basis: Tensor | None) -> float:
        right = 0
        for batch in self._batches(pairs):
            logits = self._logits(batch, basis, grad=False)
            right += int((logits.argmax(-1).cpu() == batch.answers).sum())
        return right / len(pairs)

    def _logits(self, batch: _Batch, basis: Tensor | None, *, grad: bool) -> Tensor:
        edits = () if basis is None else Interchange(self.point, self.at, basis, batch.states)
        logits = self.vlm.run(batch.base, interventions=edits, grad=grad)
        return at_last(logits, batch.base.layouts)[:, -1].float()

    def answers(self, pairs: Sequence[Counterfactual]) -> list[int]:
        """The token that each pair is to be answered with."""
        return [
            self.vlm.to_first_token(p.answer) if isinstance(p.answer, str) else int(p.answer)
            for p in pairs
        ]

    def _batches(self, pairs: Sequence[Counterfactual]) -> list[_Batch]:
        """Pairs whose bases are of like length together, with the states of their sources."""
        states = read_each(
            self.vlm, [p.source for p in pairs], at=self.at, points=self.point,
            batch_size=self.batch_size,
        )  # fmt: skip
        ids = self.answers(pairs)
        return [
            _Batch(
                self.vlm.as_prompt(batch.prompts),
                states[list(batch.rows)],
                torch.tensor([ids[i] for i in batch.rows]),
            )
            for batch in batches(self.vlm, [p.base for p in pairs], self.batch_size)
        ]


def _split(
    pairs: Sequence[Counterfactual], holdout: float, seed: int
) -> tuple[list[Counterfactual], list[Counterfactual]]:
    """Pairs to learn from and pairs held out, by group; without groups by pair."""
    groups = [p.group or str(i) for i, p in enumerate(pairs)]
    names = sorted(set(groups))
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    out = set(shuffled[: max(round(len(names) * holdout), 1)])
    train = [p for p, g in zip(pairs, groups, strict=True) if g not in out]
    return train, [p for p, g in zip(pairs, groups, strict=True) if g in out]


def _dealt(pairs: Sequence[Counterfactual], seed: int) -> dict[int, str | int]:
    """The pairs' answers, dealt out to them anew."""
    order = np.random.default_rng(seed + 2).permutation(len(pairs))
    return {id(p): pairs[i].answer for p, i in zip(pairs, order, strict=True)}


def _reinitialised(vlm: HookedModel, seed: int) -> HookedModel:
    """The same architecture with weights as its class initialises them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(vlm.hf_model)(vlm.hf_model.config)
    parameter = next(vlm.hf_model.parameters())
    return type(vlm)(model.to(parameter).eval(), vlm.processor)


__all__ = ["Counterfactual", "DasResult", "Subspace", "das"]
