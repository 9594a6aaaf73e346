"""LatentLens: states compared with the states of words in context, of this model's own reading.

```
score(token) = max over its contexts and over all layers of cos(h, entry)
```

Krojer et al. 2026, arXiv 2602.00462. A state of a picture in an early block is often nearest to
text states of a middle block, so all layers of the bank are searched, not the state's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.origin import check_same_model
from vlm_lens.lenses.bank import Bank
from vlm_lens.lenses.base import Lens, LensError, Reading, States, ranked

_WORDS = 6  # of a context that are shown


@dataclass(frozen=True)
class LatentLens(Lens):
    """Compares each state with a bank of contextual embeddings, by cosine.

    Each token counts once, by its nearest context and layer, which tables and hover texts name.

    Attributes:
        bank: The bank, or its folder; see `Bank.build`.
        allow_transfer: Lets a bank of another model of the same width be used.
    """

    bank: Bank | str | Path = field(kw_only=True)
    allow_transfer: bool = field(kw_only=True, default=False)

    measure: ClassVar[str] = "cosine similarity"
    title: ClassVar[str] = "Which word in context each state is nearest to"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.bank, str | Path):
            object.__setattr__(self, "bank", Bank(Path(self.bank)))
        if not isinstance(self.bank, Bank):
            raise LensError(
                f"bank= is a Bank or its folder, not {type(self.bank).__name__}: "
                "Bank.build(vlm, texts, folder) makes one."
            )

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are read.

        Raises:
            LensError: The bank is another model's.
            PointError: A point is not as wide as the residual stream.
        """
        names = super().names(vlm)
        source = self.bank.source
        if source.d_model != vlm.cfg.d_model:
            raise LensError(
                f"The bank is of {source.name}, of width {source.d_model}; {vlm.name} has width "
                f"{vlm.cfg.d_model}."
            )
        if not self.allow_transfer:
            try:
                check_same_model(source, vlm.facts, "bank")
            except VectorError as error:
                raise LensError(str(error)) from None
        return names

    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """The tokens with the nearest entries.

        Raises:
            LensError: The bank has no entry of a chosen token.
        """
        known = self.bank.tokens
        place = {int(token): i for i, token in enumerate(known)}
        lost = [token for token in tokens if token not in place]
        if lost:
            name = self.labels(vlm, {lost[0]})[lost[0]]
            raise LensError(f"The bank has no entry of {name!r}: build it with texts that have it.")
        cosine, source = self.bank.search(states.values)
        found = ranked(cosine, self.k, [place[token] for token in tokens])
        sources = source.cpu().gather(1, found.top_ids)
        return replace(found, top_ids=known[found.top_ids], sources=sources)

    def source_labels(self, vlm: HookedModel, ids: set[int]) -> dict[int, str]:
        """The context of each entry, up to its token, and the layer."""
        points = self.bank.points
        labels = {}
        for number in ids:
            entry, layer = divmod(number, len(points))
            text, position = self.bank.context(entry)
            strings = vlm.as_prompt(text).layout.strings[: position + 1]
            shown = "".join(strings[-_WORDS:]).replace("\n", "⏎")
            labels[number] = f"{'…' * (len(strings) > _WORDS)}{shown} at {_short(points[layer])}"
        return labels


def _short(point: str) -> str:
    return point.removesuffix(".hook_resid_post").replace("blocks.", "block ")


__all__ = ["LatentLens"]
