"""What rows of attention come to: how spread they are, and where resampled pictures were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vlm_lens.attention.parts import AttentionError
from vlm_lens.scores.scores import Scores, scores


def entropy(found: Scores, *, within: str | None = None) -> Scores:
    """How spread attention is over keys, in nats: 0 on a single key, log n on n keys alike.

    Args:
        found: Attention by `position`.
        within: A kind of position, such as `"image 0"`: the entropy of what falls on it,
            normalised within it ("spatial entropy" of a head on a picture).

    Raises:
        ScoresError: There is no axis of positions, or no position is of that kind.
    """
    found.needs("position")
    values = (found if within is None else found.of_kind(within)).values
    total = values.sum("position")
    share = values / total.where(total > 0)
    nats = -(share * np.log(share.where(share > 0))).sum("position")
    return replace(found, values=nats, name="entropy (nats)", marked={})


def on_patches(found: Scores, weights: Mapping[int, Float[Tensor, "latent rows cols"]]) -> Scores:
    """Scores of a resampler's latents, spread over the patches that each latent has read.

    Args:
        found: Scores in the language model, whose pictures stand there as latents.
        weights: Picture -> what each of its latents reads of each patch; see
            `vlm_lens.reading.resampled.patch_weights`.

    Returns:
        Scores by the tower's positions: `sum over latents of score * weight`.

    Raises:
        AttentionError: A picture without map, or of another number of latents.
    """
    found.needs("position")
    axes = [a for a in found.axes if a != "position"]
    by_position = found.values.transpose(*axes, "position").to_numpy()
    positions = found.values["position"].to_numpy().tolist()
    parts, keys = [], []
    for image in found.layout.images:
        if image.index not in weights:
            raise AttentionError(f"Image {image.index} has no map from latents to patches.")
        maps = weights[image.index].detach().cpu().float().numpy()
        missing = [p for p in image.positions if p not in positions]
        if missing or len(image.positions) != len(maps):
            raise AttentionError(
                f"Image {image.index} has {len(image.positions)} latents in the text and its map "
                f"{len(maps)}; scores are there for {len(image.positions) - len(missing)}."
            )
        columns = [positions.index(p) for p in image.positions]
        grid = image.vision.grid()
        parts.append(by_position[..., columns] @ maps.reshape(len(maps), -1))
        keys += [(grid.row, p) for p in grid.positions]
    return scores(
        np.concatenate(parts, -1),
        {**{a: found.values[a].to_numpy().tolist() for a in axes},
         "position": [p for _, p in keys]},
        [r for r, _ in keys],
        name=found.name,
        layout=found.layout,
        pictures=found.pictures,
        space="vision",
        about={**found.about, "spread": "over patches, by what each latent has read"},
    )  # fmt: skip
