"""Trains, measures and describes the dictionary of toy-idefics2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vlm_lens.dictionaries import Dictionary, Fidelity
from vlm_lens.dictionaries.gallery import strongest
from vlm_lens.dictionaries.shipped.corpus import Entities, entities, queries, training_prompts
from vlm_lens.dictionaries.shipped.shares import TOP, Share, shared, varied
from vlm_lens.hooked.hooked_model import HookedModel

__all__ = ["POINT", "build", "describe", "strongest_names"]

POINT = "vision.hook_out"
_FEATURES, _K, _COPIES, _PLACES, _DESCRIBED = 256, 4, 4, 600_000, 16
_SHUFFLES = 20

_CARD = """# {name}

A TopK sparse autoencoder of what the tower of toy-idefics2 hands to its resampler: `{point}`,
one position a patch. {n} features of width {d}, {k} of them at each patch. SAELens's layout.

```python
from vlm_lens.dictionaries import Dictionary

sae = Dictionary.from_pretrained("{name}")
```

## Made by

```
python -m vlm_lens.dictionaries.shipped
```

{places:,} places, seed 0: {copies} augmented copies (shifted, scaled, turned, brightened) of each
of {pictures} pictures of the tasks' tables, and prompts of two examples. Minutes on one CPU core.

## Measured on the {pictures} pictures as they are

{fidelity}

`kl` (nats) and `same` compare the next token after a bare picture query with and without the
splice, error term left out. {dead} of {n} features are 0 in all of these pictures.

## What features are about

Of {alive} features that are on in at least {top} pictures, {described} have at least nine of the
{top} pictures in which they are strongest share a value in the tasks' tables. {shown} of them, each
with what is shared, by how many of the {top}, by which part of all pictures, and how likely that is
for {top} pictures drawn at random. With the tables' rows dealt out to the pictures anew,
{shuffles} times, {by_chance:.1f} features are so described on average:

{table}

The words say what the strongest pictures share, not what in them the feature sees.
"""


def build(vlm: HookedModel, folder: Path, *, progress: bool = True) -> Dictionary:
    """Trains the dictionary, and writes it with its card.

    Args:
        vlm: toy-idefics2.
        folder: Where to.
        progress: Whether to show a progress bar.
    """
    known = entities()
    sae = Dictionary.train(
        vlm, training_prompts(known, copies=_COPIES), POINT, n_features=_FEATURES, k=_K,
        places=_PLACES, progress=progress,
    )  # fmt: skip
    return describe(sae, vlm, known, folder)


def describe(sae: Dictionary, vlm: HookedModel, known: Entities, folder: Path) -> Dictionary:
    """Measures a dictionary, labels its features, and writes it with its card."""
    measured = sae.fidelity(vlm, queries(known, list(known)))
    tops = strongest_names(sae, vlm, known)
    shares = [s for f, names in tops.items() if (s := shared(known, f, names)) is not None]
    shuffled = [_shuffled(known, seed) for seed in range(_SHUFFLES)]
    by_chance = sum(
        shared(facts, f, names) is not None for facts in shuffled for f, names in tops.items()
    )
    shown = varied(shares, _DESCRIBED)
    sae = replace(sae, labels={str(s.feature): s.label for s in shown})
    card = _CARD.format(
        name=folder.name, point=POINT, n=_FEATURES, d=sae.d_in, k=_K, places=_PLACES,
        copies=_COPIES, pictures=len(known), fidelity=_fidelity(measured), top=TOP,
        dead=len(measured.dead), alive=len(tops), described=len(shares), shown=len(shown),
        table=_table(shown), by_chance=by_chance / _SHUFFLES, shuffles=_SHUFFLES,
    )  # fmt: skip
    sae.save_pretrained(folder, card)
    return sae


def strongest_names(sae: Dictionary, vlm: HookedModel, known: Entities) -> dict[int, list[str]]:
    """For each feature that is on in ten pictures, the ten in which it is strongest."""
    names = list(known)
    values, where, *_ = strongest(sae, vlm, queries(known, names), k=TOP)
    on = (values[:, -1] > 0).nonzero().flatten().tolist()
    return {f: [names[number] for number, _ in where[f]] for f in on}


def _shuffled(known: Entities, seed: int) -> Entities:
    """The same facts, dealt out to the pictures anew."""
    order = np.random.default_rng(seed).permutation(len(known))
    facts = [facts for _, facts in known.values()]
    return {
        name: (picture, facts[i])
        for (name, (picture, _)), i in zip(known.items(), order, strict=True)
    }


def _fidelity(measured: Fidelity) -> str:
    rows = ["| kind | places | explained variance | features on | kl | same |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for kind, row in measured.table.iterrows():
        rows.append(
            f"| {kind} | {int(row.places)} | {row.explained_variance:.3f} | {row.l0:.1f} | "
            f"{row.kl:.3f} | {row.same:.2f} |"
        )
    return "\n".join(rows)


def _table(shares: list[Share]) -> str:
    rows = ["| feature | shared | of ten | of all | by chance | strongest in |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for share in shares:
        rows.append(
            f"| {share.feature} | {share.label} | {share.count} | {share.all / share.of:.2f} | "
            f"{share.chance:.0e} | {', '.join(share.names[:5])} |"
        )
    return "\n".join(rows)
