"""Neurons before and after a non-linearity, proved by applying it; the scores of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vlm_lens.families.parts.found_block import MLP, Block, Part, norm_like
from vlm_lens.families.parts.recording import same
from vlm_lens.points.sites import ColumnsView, OutputSite


def mlp_of(parts: list[Part], out: Part, attn: Part | None) -> Part | None:
    """The module whose output, normed or not, the block adds after attention."""
    named = {p.name: p for p in parts}
    top = out.name.split(".")[0]
    if any(name.startswith(f"{top}.") for name in named):
        return named.get(top, out)
    return next(
        (p for p in parts if p.call.gave is not None and out.call.argument(p.call.gave) is not None
         and p is not attn and any(n.startswith(f"{p.name}.") for n in named)), None,
    )  # fmt: skip


def place_mlp(
    found: Block, parts: list[Part], mlp: Part | None, activation: Callable | None, out: Part
) -> None:
    """Places neurons, the norm before them, and the scores of experts.

    Args:
        found: The block.
        parts: Its modules.
        mlp: The MLP, where it is one module.
        activation: The non-linearity, where the block has none of its own.
        out: The module whose output the block adds after attention.
    """
    if mlp is None:
        found.lack(("ln2.hook_normalized",), "its MLP is not one module.")
        if list(out.module.children()) or norm_like(out):
            found.lack(MLP, "its MLP is not one module.")
        else:
            functions = [f for p in parts for f in ([p.module] if _plain(p.module) else [])]
            _place_layers(found, parts, out, [*functions, activation])
        return
    inner = [p for p in parts if p.name.startswith(f"{mlp.name}.")]
    for part in parts:
        gave = part.call.gave
        if gave is None or part.name.startswith(f"{mlp.name}.") or part is mlp:
            continue
        wide = mlp.call.gave is None or gave.shape[-1] == mlp.call.gave.shape[-1]
        if mlp.call.argument(gave) is not None and norm_like(part) and wide:
            if part.name != found.first_norm:
                found.sites["ln2.hook_normalized"] = part.leaving()
            break
    found.lack(("ln2.hook_normalized",), f"{mlp.name} reads no norm of its own.")
    experts = [n for n, _ in mlp.module.named_children() if "expert" in n]
    if experts:
        found.lack(MLP, "it is a mixture of experts, which have neurons of their own.")
        _place_router(found, inner, mlp)
        return
    down = next((p for p in reversed(inner) if same(p.call.gave, mlp.call.gave)), None)
    if down is None:
        found.lack(MLP, "no layer of its MLP gives what the MLP gives.")
        return
    _place_layers(found, inner, down, [*_activations(mlp.module), activation])


def _place_layers(
    found: Block, inner: list[Part], down: Part, functions: list[Callable | None]
) -> None:
    """Neurons: what the last layer of an MLP reads, and what became it by a non-linearity."""
    [(key, post)] = list(down.call.given.items())[:1]
    found.d_mlp = post.shape[-1]
    found.sites["mlp.hook_post"] = down.entering(post)
    for function in functions:
        if function is not None and _place_neurons(found, inner, post, function):
            break
    found.lack(MLP, "what enters its non-linearity is not one layer's output.")


def _plain(module: nn.Module) -> bool:
    """Whether a module has neither weights nor parts: a non-linearity may be one."""
    return not list(module.children()) and not any(True for _ in module.parameters())


def _activations(mlp: nn.Module) -> Iterator[Callable]:
    for value in [*vars(mlp).values(), *mlp.children()]:
        module = isinstance(value, nn.Module)
        if callable(value) and not (module and any(True for _ in value.parameters())):
            yield value


def _place_neurons(found: Block, inner: list[Part], post: Tensor, function: Callable) -> bool:
    width = post.shape[-1]
    layers = [
        p for p in inner if p.call.gave is not None and any(True for _ in p.module.parameters())
    ]
    for part in layers:
        gave = part.call.gave
        if gave.shape[-1] == width and same(_apply(function, gave), post):
            found.sites["mlp.hook_pre"] = part.leaving()
            found.lack(("mlp.hook_pre_linear",), "its MLP has no gate.")
            return True
        if gave.shape[-1] == 2 * width:
            for first in (0, width):
                gate, up = gave[..., first : first + width], gave[..., width - first :][..., :width]
                if same(_mul(_apply(function, gate), up), post):
                    second = width - first
                    found.sites["mlp.hook_pre"] = part.leaving(ColumnsView(first, first + width))
                    found.sites["mlp.hook_pre_linear"] = part.leaving(
                        ColumnsView(second, second + width)
                    )
                    return True
        for other in layers:
            if other is part or gave.shape[-1] != width or other.call.gave.shape != gave.shape:
                continue
            if same(_mul(_apply(function, gave), other.call.gave), post):
                found.sites["mlp.hook_pre"] = part.leaving()
                found.sites["mlp.hook_pre_linear"] = other.leaving()
                return True
    return False


def _apply(function: Callable, x: Tensor) -> Tensor | None:
    try:
        out = function(x)
    except (TypeError, RuntimeError, ValueError):
        return None
    return out if isinstance(out, Tensor) else None


def _mul(a: Any, b: Tensor) -> Tensor | None:
    return a * b if isinstance(a, Tensor) and a.shape == b.shape else None


_ROUTERS = ("gate", "router")
_ROUTER = "mlp.hook_router_logits"


def _place_router(found: Block, inner: list[Part], mlp: Part) -> None:
    """The layer that scores the experts: its output counts them."""
    routers = [n for n, m in mlp.module.named_modules() if n.split(".")[-1] in _ROUTERS
               and any(True for _ in m.parameters())]  # fmt: skip
    if len(routers) > 1:
        found.lack((_ROUTER,), "it has a router for text and one for pictures.")
        return
    for part in inner:
        name, gave = part.name.rsplit(".", 1)[1], part.call.gave
        if name in _ROUTERS and gave is not None and gave.dim() in (2, 3):
            scores = [i for i, x in enumerate(part.call.all) if x is not None and (x < 0).any()]
            if not scores:
                break
            path = (scores[0],) if part.call.several else ()
            site = OutputSite(part.name, path, part.flat(gave))
            found.sites[_ROUTER] = lambda b, s=site: replace(s, module=f"{b}.{s.module}")
            if part.call.several:
                found.read_only[_ROUTER] = "the router has chosen its experts when it gives them"
            return
    found.lack((_ROUTER,), "its router is not a layer of its own.")
