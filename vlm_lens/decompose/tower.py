"""What heads and patches of a vision tower bring to the features that the language model gets.

```
value = sum over the positions asked of < direction, projector.hook_out >
      = sum over parts of the tower's stream and its positions of < J, part >  + a constant
```

The stream is that of the layer which the projector reads (not the last one, where they differ), as
in Gandelsman et al. 2023 (arXiv 2310.05916) for CLIP. `J` is the projector's derivative, with the
scales of norms on the way held: exact through a linear projector, first order otherwise, and then
the constant holds what the derivative leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_lens.decompose.scores import Components
from vlm_lens.decompose.sources import shares_by_key
from vlm_lens.errors import PointError
from vlm_lens.gradients import recording
from vlm_lens.layout.positions import Position
from vlm_lens.scores.places import sequence
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.stream.norm import HeldNorms
from vlm_lens.stream.parts import Stream
from vlm_lens.stream.refusal import StreamError

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions
    from vlm_lens.prompts.prompt import Prompt

_OUT, _FEATURES = "projector.hook_out", "vision.hook_out"


@recording()
def decompose_tower(
    vlm: HookedModel,
    prompt: Prompt,
    at: Position,
    direction: Tensor,
    *,
    by: str = "component",
    interventions: Interventions = (),
) -> Scores:
    """The projector's output at some positions, along a direction, as the sum of its parts.

    Args:
        vlm: The model.
        prompt: A prompt of one row, with pictures.
        at: Positions of the projector's output; their values are added.
        direction: `[d_model]`.
        by: `"component"`, or `"source"`: what every head brings from every position of the tower.
        interventions: What to change in the run.

    Raises:
        StreamError: The tower's stream cannot be taken apart.
        PointError: The model has no tower with points, or its projector reads several layers.
    """
    points, size = vlm.architecture.points, vlm.cfg.vision
    if size is None:
        raise PointError("This model has no vision tower with points.")
    points[_FEATURES]  # noqa: B018  refused with the family's reason
    stream, n_layers = Stream(vlm.hf_model, vlm.architecture, "vision."), size.n_layers_read
    last = stream.name(n_layers - 1, "hook_resid_post")
    names = {*stream.names(n_layers), _OUT}
    with HeldNorms():
        _, cache = vlm.run_with_cache(
            prompt, names_filter=lambda n: n in names, grad=True, interventions=interventions,
            last_logits=1,
        )  # fmt: skip
        rows, positions = zip(*at.resolve(prompt.layout, points[_OUT].space), strict=True)
        out = cache[_OUT][torch.tensor(rows), torch.tensor(positions)]
        value = (out * direction.to(out)).sum()
        (gradient,) = torch.autograd.grad(value, cache[last], create_graph=True)
    exact = _is_constant(gradient, cache[last])
    value, pulled = value.detach().double(), gradient.detach().double()
    values = {name: cache[name].detach() for name in cache}
    about = {
        "model": vlm.name, "at": str(at), "of": last,
        "projector": "linear: exact" if exact else "not linear: by its derivative",
    }  # fmt: skip
    shown = {"name": "share of the direction", "layout": prompt.layout, "space": "vision",
             "pictures": prompt.images[0] if prompt.images else ()}  # fmt: skip
    if by == "source":
        found, left = shares_by_key(
            vlm, prompt, None, stream, values, range(n_layers), pulled[None], interventions
        )
        if not found:
            raise StreamError(f"No head can be shared out by source: {next(iter(left.values()))}")
        places = sequence(prompt.layout, "vision")
        rows, positions = (torch.tensor(x) for x in zip(*places, strict=True))
        shares = [x.sum(1)[:, 0].movedim(1, 0)[:, rows, positions] for x in found.values()]
        axes = {"layer": list(found), "head": range(size.n_heads), "position": positions.tolist()}
        about |= {"left out": left} if left else {}
        return scores(torch.stack(shares).cpu().numpy(), axes, rows.tolist(), about=about, **shown)
    parts = Components()
    for part in stream.parts(values, n_layers):
        share = (part.values * pulled.to(part.values)).flatten(1).sum(1)
        parts.add(part, share.to(value.device))
    rest = value - parts.values().sum()
    parts.add_constant("projector" if exact else "projector, beyond first order", rest[None])
    array = parts.values().cpu().numpy()
    return parts.beside(scores(array, {"component": parts.names}, about=about, **shown))


def _is_constant(gradient: Tensor, x: Tensor) -> bool:
    """Whether a derivative does not change with `x`."""
    if not gradient.requires_grad:
        return True
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).to(gradient)
    try:
        (second,) = torch.autograd.grad((gradient * noise).sum(), x, allow_unused=True)
    except RuntimeError:  # a kernel of attention without a second derivative: it is not linear
        return False
    return second is None or not second.any()
