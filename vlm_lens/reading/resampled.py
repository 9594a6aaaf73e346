"""What each latent of a resampler has read of each patch, from its attention patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import PointError
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.points.placement import together

_PATTERNS = ("projector.blocks.*.cross_attn.hook_pattern", "projector.blocks.*.attn.hook_pattern")


def patch_weights(
    cache: ActivationCache, image: int = 0, *, row: int = 0, grid: int = 0
) -> Float[Tensor, "latent rows cols"]:
    """The attention of a picture's latents over its patches, averaged over blocks and heads.

    Where a text position holds a latent of a resampler, no position has a patch of its own; this
    map is the nearest thing to one. It is attention, not attribution: what one latent hands to
    another in a later block is not followed.

    Args:
        cache: A run that has read the resampler's patterns, for example
            `vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")[1]`.
        image: Which picture of the prompt, from 0.
        row: Which row of the batch.
        grid: Which view of the picture, on a model that cuts pictures into tiles; 0 is the whole.

    Returns:
        One map a latent, in the order of the view's positions in the text. A map sums to what the
        latent reads of the patches, at most 1: the rest it reads of latents.

    Raises:
        PointError: The cache holds no such patterns.
    """
    patches = cache.layouts[row].image[image].vision.grid(grid)
    for pattern in _PATTERNS:
        found = [cache[name] for name in cache if fnmatchcase(name, pattern)]
        if found:
            break
    else:
        raise PointError(
            "This cache holds no attention pattern of a resampler: read them, "
            "vlm.run_with_cache(prompt, names_filter='projector.*hook_pattern'). Where positions "
            "hold patches of their own (layout.image[0].grid), no such map is needed."
        )
    patterns = torch.stack([x[patches.row].float() for x in together(found)])
    mean = reduce(patterns, "block head latent key -> latent key", "mean")
    columns = torch.tensor(patches.positions, device=mean.device)
    return rearrange(mean[:, columns], "latent (rows cols) -> latent rows cols", rows=patches.rows)
