"""Internal confidence: how likely the logit lens says an object is, at patches and blocks.

```
c(object) = max over image positions and blocks of softmax(W_U norm(h))[first token of the object]
```

Jiang et al. 2025 (arXiv 2410.02762) tell objects that are in the picture from objects that a model
makes up by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import Images, Position, as_position
from vlm_lens.scores.scores import Scores, scores


@torch.no_grad()
@answering
def internal_confidence(
    vlm: HookedModel,
    prompt: Any,
    tokens: Sequence[str | int],
    images: Any = None,
    *,
    at: Position | int | None = None,
) -> Scores:
    """The lens's probability of some words at image positions, by block.

    Args:
        vlm: The model.
        prompt: One prompt: a Prompt of one row, text, or a processor's output.
        tokens: Words, whose first token counts, or token ids.
        images: Pictures, where `prompt` is text.
        at: Where; at all positions of pictures by default.

    Returns:
        Scores by `layer`, `position` and `token`; `.max("layer", "position")` is the confidence.

    Raises:
        VLMLensError: A batch of several rows, no picture, or a word that is no token.
    """
    made = vlm.as_prompt(prompt, images)
    if len(made) != 1:
        raise VectorError(f"One prompt at a time; this is a batch of {len(made)} rows.")
    pairs = (Images() if at is None else as_position(at)).resolve(made.layout)
    ids = [vlm.to_first_token(t) if isinstance(t, str) else vlm.to_token_id(t) for t in tokens]
    names = vlm.architecture.points.match("blocks.*.hook_resid_post")
    _, cache = vlm.run_with_cache(made, names_filter=names, last_logits=1)
    rows, positions = torch.tensor(pairs).T
    found = torch.stack(
        [
            vlm.unembed(vlm.ln_final(cache[n][rows, positions])).float().softmax(-1)[:, ids].cpu()
            for n in names
        ]
    )
    return scores(
        found.numpy(),
        {"layer": list(range(len(names))), "position": [p for _, p in pairs],
         "token": [str(t) for t in tokens]},
        name="probability", layout=made.layout, pictures=made.images[0] if made.images else (),
        about={"model": vlm.name, "lens": "logit lens"},
    )  # fmt: skip


__all__ = ["internal_confidence"]
