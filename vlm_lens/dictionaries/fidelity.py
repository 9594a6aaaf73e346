"""How well a dictionary knows a model's activations, by kind of position.

```
explained variance   1 - sum |x - decode(encode(x))|^2 / sum |x - mean|^2     mean of that kind;
                     NaN where nothing varies (the first token)
l0                   features that are not 0, on average
kl                   KL(plain || spliced without the error term, at that kind) of the next token
same                 share of prompts whose likeliest next token stays
```

A dictionary trained on text may reconstruct text and no picture; one number over all positions
would hide that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_lens.dictionaries.edits import Splice
from vlm_lens.dictionaries.stream import IMAGE, SPECIAL, TEXT, places_of, places_read
from vlm_lens.dictionaries.value import DictionaryValue
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.positions import All, Images, Position, Text
from vlm_lens.measures import Logits
from vlm_lens.sweep import sweep

if TYPE_CHECKING:
    import pandas as pd

_ALL = "all"
_AT: dict[str, Position] = {
    IMAGE: Images(), TEXT: Text(), SPECIAL: Text(special=True) - Text(), _ALL: All(),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fidelity:
    """How well a dictionary knows the activations of some prompts.

    Attributes:
        table: One row a kind of position: `places`, `explained_variance`, `l0`, and where it was
            asked for `kl` (nats) and `same`.
        density: For each feature, at which share of all places it is not 0, `[features]`.
    """

    table: pd.DataFrame
    density: Tensor = field(repr=False)

    @property
    def dead(self) -> list[int]:
        """The features that are 0 everywhere in these prompts."""
        return (self.density == 0).nonzero().flatten().tolist()

    def __repr__(self) -> str:
        dead = f"{len(self.dead)} of {len(self.density)} features are 0 everywhere"
        return f"{self.table.to_string(float_format=lambda v: f'{v:.4g}')}\n{dead}"

    def _repr_html_(self) -> str:
        return self.table.to_html(border=0, float_format=lambda v: f"{v:.4g}")


@dataclass
class _Sums:
    places: int = 0
    total: Tensor | float = 0.0
    squares: float = 0.0
    errors: float = 0.0
    active: float = 0.0

    def add(self, y: Tensor, error: Tensor, features: Tensor) -> None:
        self.places += len(y)
        self.total = self.total + y.sum(0)
        self.squares += float(y.pow(2).sum())
        self.errors += float(error.pow(2).sum())
        self.active += float((features != 0).sum())

    def row(self) -> dict[str, Any]:
        around_mean = self.squares - float(torch.as_tensor(self.total).pow(2).sum()) / self.places
        varies = around_mean > 1e-9 * self.squares  # below is rounding: the same at every place
        explained = 1 - self.errors / around_mean if varies else float("nan")
        return {"places": self.places, "explained_variance": explained,
                "l0": self.active / self.places}  # fmt: skip


def fidelity(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompts: Sequence[Any],
    *,
    splice: bool = True,
    batch_size: int = 16,
) -> Fidelity:
    """See `Dictionary.fidelity`."""
    import pandas as pd

    point = dictionary.point_on(vlm)
    sums: dict[str, _Sums] = {}
    used, n_places = torch.zeros(dictionary.n_features), 0
    for read in places_read(vlm, point, prompts, batch_size=batch_size):
        features = dictionary.encode(read.x)
        y = read.x
        if dictionary.transcodes:
            out = dictionary.point_on(vlm, out=True)
            _, cache = vlm.run_with_cache(read.prompt, names_filter=out.name, last_logits=1)
            rows, positions = torch.tensor(read.pairs).T
            y = cache[out.name][rows, positions].flatten(1)
        error = y - dictionary.decode(features, read.x)
        used += (features != 0).sum(0).cpu()
        n_places += len(y)
        kinds = [*dict.fromkeys(read.kinds)]
        for kind in kinds + [_ALL]:
            mine = torch.tensor([kind in (_ALL, k) for k in read.kinds])
            wide = (t[mine].double().cpu() for t in (y, error, features))
            sums.setdefault(kind, _Sums()).add(*wide)
    order = [k for k in _AT if k in sums]
    table = pd.DataFrame([sums[k].row() for k in order], index=pd.Index(order, name="kind"))
    if splice:
        table = table.join(_spliced(dictionary, vlm, prompts, point.space, order))
    return Fidelity(table, used / max(n_places, 1))


def _spliced(
    dictionary: DictionaryValue, vlm: HookedModel, prompts: Sequence[Any], space: str,
    kinds: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """What the model loses where it sees the reconstruction, by kind."""
    import pandas as pd

    rows = []
    for one in prompts:
        prompt = vlm.as_prompt(one)
        here = [
            kind for kind in kinds
            if all(places_of(layout, space, _AT[kind]) for layout in prompt.layouts)
        ]  # fmt: skip
        if not here:
            continue
        edits = [Splice(dictionary, _AT[kind], error=False) for kind in here]
        found = sweep(vlm, prompt, edits, measure=Logits(), progress=False)
        for i, record in enumerate(found.records):
            plain = found.baseline[i % len(prompt)]["logits"][-1].double().log_softmax(-1)
            spliced = record["logits"][-1].double().log_softmax(-1)
            rows.append(
                {"kind": here[i // len(prompt)],
                 "kl": float((plain.exp() * (plain - spliced)).sum()),
                 "same": float(plain.argmax() == spliced.argmax())}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["kind", "kl", "same"]).groupby("kind").mean()


__all__ = ["Fidelity", "fidelity"]
