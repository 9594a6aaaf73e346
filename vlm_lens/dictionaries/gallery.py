"""In which pictures features are strongest, and at which patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_lens.dictionaries.features import Chosen, features
from vlm_lens.dictionaries.stream import places_read
from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.figures.feature_gallery import FeatureRow, Tile, gallery_html, save_gallery
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.positions import Images
from vlm_lens.prompts.prompt import Prompt

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 12  # features that are shown where none are named


@dataclass(frozen=True, eq=False)
class Gallery:
    """The pictures in which some features are strongest; one row a feature.

    Attributes:
        table: A row each: `feature`, `rank` (from 0), `activation`, `prompt`, `image`, `caption`,
            and `patch` and `pixels` where places are patches of the picture.
        rows: What is drawn.
    """

    table: pd.DataFrame
    rows: tuple[FeatureRow, ...] = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Writes a page that needs no network.

        Returns:
            Its path.
        """
        return save_gallery(self.rows, path, "Features")

    def _repr_html_(self) -> str:
        return gallery_html(self.rows)

    def __repr__(self) -> str:
        best = self.table.groupby("feature", sort=False).head(4)
        shown = best.groupby("feature", sort=False)["caption"].agg(", ".join)
        return f"Gallery of {len(self.rows)} features\n{shown.to_string()}"


def gallery(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompts: Sequence[Any],
    chosen: Chosen = None,
    *,
    k: int = 8,
    captions: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Gallery:
    """See `Dictionary.gallery`."""
    import pandas as pd

    prompts = list(prompts)
    if captions is not None and len(captions) != len(prompts):
        raise DictionaryError(f"{len(captions)} captions for {len(prompts)} prompts.")
    if k < 1:
        raise DictionaryError(f"k is at least 1 picture, not {k}.")
    values, where, counts, n_pictures = strongest(
        dictionary, vlm, prompts, k=k, batch_size=batch_size
    )
    shown = _shown(dictionary, values, chosen)
    made: dict[int, Prompt] = {}
    records, rows = [], []
    for feature in shown:
        tiles = []
        for rank in range(values.shape[1]):
            activation = float(values[feature, rank])
            if activation <= 0:
                break
            number, image = where[int(feature)][rank]
            prompt = made.setdefault(number, vlm.as_prompt(prompts[number]))
            caption = captions[number] if captions is not None else f"prompt {number}"
            tile, place = _tile(dictionary, vlm, prompt, feature, image, activation, caption)
            tiles.append(tile)
            records.append(
                {"feature": feature, "rank": rank, "activation": activation, "prompt": number,
                 "image": image, "caption": caption, **place}
            )  # fmt: skip
        label = dictionary.labels.get(str(feature), "")
        title = f"feature {feature}" + (f": {label}" if label else "")
        note = f"on in {int(counts[feature])} of {n_pictures} pictures"
        rows.append(FeatureRow(title, note, tuple(tiles)))
    columns = ["feature", "rank", "activation", "prompt", "image", "caption", "patch", "pixels"]
    return Gallery(pd.DataFrame(records, columns=columns), tuple(rows))


def strongest(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompts: Sequence[Any],
    *,
    k: int,
    batch_size: int = 16,
) -> tuple[torch.Tensor, list[list[tuple[int, int]]], torch.Tensor, int]:
    """For each feature, the `k` pictures in which it is strongest at any place.

    Pictures stream by: `k` of each feature are held.

    Returns:
        Activations `[features, k]`, falling; for each feature, prompt and picture of each; in how
        many pictures each feature is on; and how many pictures there were.

    Raises:
        DictionaryError: No prompt shows a picture.
    """
    point = dictionary.point_on(vlm)
    best = torch.zeros(dictionary.n_features, 0)
    index = torch.zeros(dictionary.n_features, 0, dtype=torch.long)
    counts = torch.zeros(dictionary.n_features, dtype=torch.long)
    pictures: list[tuple[int, int]] = []
    for read in places_read(vlm, point, prompts, at=Images(), batch_size=batch_size):
        own = list(dict.fromkeys(zip(read.numbers, read.images, strict=True)))
        owner = torch.tensor(
            [own.index(pair) for pair in zip(read.numbers, read.images, strict=True)]
        )
        found = dictionary.encode(read.x).float().cpu()
        most = torch.zeros(len(own), found.shape[1]).scatter_reduce(
            0, owner[:, None].expand_as(found), found, "amax"
        )
        counts += (most > 0).sum(0)
        first = len(pictures)
        pictures += own  # type: ignore[arg-type]
        numbers = torch.arange(first, len(pictures)).expand(found.shape[1], -1)
        both, names = torch.cat([best, most.T], 1), torch.cat([index, numbers], 1)
        best, order = both.topk(min(k, both.shape[1]), dim=1)
        index = names.gather(1, order)
    if not pictures:
        raise DictionaryError("None of these prompts shows a picture.")
    return best, [[pictures[i] for i in row] for row in index.tolist()], counts, len(pictures)


def _shown(dictionary: DictionaryValue, values: torch.Tensor, chosen: Chosen) -> list[int]:
    """Which features: those named; else those with a label; else those that are strongest."""
    if chosen is not None:
        return list(dictionary.numbers(chosen))  # type: ignore[arg-type]
    labelled = [int(f) for f in dictionary.labels]
    if labelled:
        return labelled
    return values[:, 0].topk(min(_ROWS, len(values))).indices.tolist()


def _tile(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompt: Prompt,
    feature: int,
    image: int,
    activation: float,
    caption: str,
) -> tuple[Tile, dict[str, Any]]:
    """One picture with a feature over it, and where it is strongest."""
    scores = features(dictionary, vlm, prompt, Images(image), [feature])
    found, places = scores.values.to_numpy()[:, 0], scores.places()
    cells = tuple(
        (place.pixels, max(float(value) / activation, 0.0))
        for place, value in zip(places, found, strict=True)
        if place.pixels is not None
    )
    best = places[int(found.argmax())]
    picture = prompt.images[0][image]
    tile = Tile(picture, activation, cells, best.pixels, caption)
    return tile, {"patch": best.patch, "pixels": best.pixels}


__all__ = ["Gallery", "gallery", "strongest"]
