"""Attention scores and patterns of a model that runs sdpa, without changing how it runs.

While a run asks for them, transformers' attention functions are wrapped (the registry is made for
that; the model and its config are not touched). In the layers asked, the model's own eager
attention runs beside the one that the model uses, on the same queries, keys and mask. Reading so
changes nothing. After a write, queries whose scores or pattern changed take eager attention's
result; every other query keeps what it had, bit for bit.

Where only some queries are read or changed, only their rows are computed: a row of scores needs its
own query and all keys, so that on a long prompt the last position costs next to nothing.

Where gradients are recorded, the layers asked take eager attention's result for every query,
because what is shown must be what the model goes on with.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlm_lens.engine.ownership import OfProcess
from vlm_lens.errors import PointError

SUPPORTED = ("sdpa", "eager")
_SOFTMAX = {torch.softmax, nn.functional.softmax, Tensor.softmax}


@dataclass(frozen=True)
class Tap:
    """What a module's scores and pattern are shown to.

    Attributes:
        show: `(stage, activation, rows, n_keys) -> replacement`, or `None` to leave it; the stage
            is `"scores"` or `"pattern"`, `rows` says which queries the activation holds, `None` for
            all, and `n_keys` how many of its columns are keys: sinks may come after them.
        rows: `(number of queries) -> the queries that are read or changed`; `None` for all.
    """

    show: Callable[[str, Tensor, Sequence[int] | None, int], Tensor | None]
    rows: Callable[[int], list[int] | None] = lambda n_queries: None


def check_supported(module: nn.Module, name: str) -> None:
    """Refuses a model whose attention never forms a pattern.

    Raises:
        PointError: The model runs another attention than sdpa or eager.
    """
    used = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if used not in SUPPORTED:
        raise PointError(
            f"{name!r} asks for attention weights, and {used!r} attention forms none: load the "
            "model with attn_implementation='sdpa' or 'eager'."
        )
    if _eager_of(module) is None:
        raise PointError(
            f"{name!r} asks for attention weights, and {type(module).__name__} has no eager "
            "attention to take them from."
        )


class _AttentionFunctions(OfProcess):
    """Transformers' registry of attention functions, wrapped while any run asks for it."""

    def __init__(self):
        self.active: ContextVar[Mapping[nn.Module, Tap | ChunkedTap] | None] = ContextVar(
            "vlm_lens_taps", default=None
        )
        self._lock = threading.Lock()
        self._users = 0
        self._replaced: dict[str, Callable] = {}  # another library's own, put back afterwards

    def install(self) -> None:
        """Wraps the functions, unless they are."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

        with self._lock:
            self._users += 1
            if self._users == 1:
                own = registry._local_mapping
                self._replaced.update({k: f for k, f in own.items() if k in SUPPORTED})
                registry["sdpa"] = _wrap(registry["sdpa"])
                registry["eager"] = _wrap(self._replaced.get("eager"))

    def uninstall(self) -> None:
        """Puts them back where nobody asks any more."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

        with self._lock:
            self._users -= 1
            if self._users == 0:
                for name in SUPPORTED:
                    del registry[name]
                registry._local_mapping.update(self._replaced)
                self._replaced.clear()


_functions = _AttentionFunctions()


class tapped:  # noqa: N801 - a context
    """While open, the attention of these modules shows its scores and pattern to their taps.

    A class, because nnsight sends functions without their decorators.
    """

    def __init__(self, taps: Mapping[nn.Module, Tap | ChunkedTap]):
        self._taps = taps

    def __enter__(self) -> None:
        if self._taps:
            _functions.install()
        self._before = _functions.active.get()
        _functions.active.set(self._taps)

    def __exit__(self, *exc: object) -> None:
        _functions.active.set(self._before)
        if self._taps:
            _functions.uninstall()


def _wrap(base: Callable | None) -> Callable:
    """An attention function that serves the taps; `base` is what runs, `None` for eager."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs
    ):
        taps = _functions.active.get()
        tap = None if taps is None else taps.get(module)
        own_eager = _eager_of(module)
        if tap is None or own_eager is None:
            return (base or own_eager)(module, query, key, value, attention_mask, **kwargs)
        if isinstance(tap, ChunkedTap):
            tap.keep(module, query, key, value, kwargs)
            return (base or own_eager)(module, query, key, value, attention_mask, **kwargs)
        recorded = torch.is_grad_enabled()
        rows = None if recorded else tap.rows(query.shape[2])
        if base is None:
            with _SoftmaxWatch(tap, rows, key.shape[2], whole=True):
                return own_eager(module, query, key, value, attention_mask, **kwargs)
        out = None if recorded else base(module, query, key, value, attention_mask, **kwargs)
        if rows == []:
            return out
        causal = kwargs.pop("is_causal", None)
        additive = _additive_mask(module, query, key, attention_mask, causal, rows)
        if rows is not None:
            n_queries, query = query.shape[2], query[:, :, rows]
            kwargs = {k: _of_rows(x, rows, n_queries) for k, x in kwargs.items()}
        watch = _SoftmaxWatch(tap, rows, key.shape[2])
        with watch:
            try:
                eager_out, _ = own_eager(module, query, key, value, additive, **kwargs)
            except (TypeError, RuntimeError) as error:
                raise PointError(
                    f"The eager attention of {type(module).__name__}, from which scores and "
                    f"patterns are taken, does not run on what the model gives it ({error}): "
                    "leave attn.hook_pattern and attn.hook_attn_scores out."
                ) from error
        if recorded:
            return eager_out, None
        if not watch.changed_rows:
            return out
        return (watch.merged(eager_out, out[0]), *out[1:])

    return attention


class ChunkedTap:
    """Serves a tap of a module that attends in chunks, one call each.

    The chunks run as they are. When the layer that reads their joined results is about to run, the
    model's eager attention runs once on the whole sequence, with a mask between chunks, and shows
    the tap scores and pattern; after a write, queries that changed take its result.

    Args:
        tap: What scores and pattern are shown to.
        here: Whether a call belongs to the run that the tap serves.
    """

    def __init__(self, tap: Tap, here: Callable[[], bool]):
        self._tap, self._here = tap, here
        self._chunks: list[tuple[Tensor, Tensor, Tensor]] = []
        self._call: tuple[nn.Module, dict[str, Any]] | None = None

    def keep(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Takes note of a chunk."""
        if not self._here():
            return
        self._chunks.append((query, key, value))
        self._call = (module, kwargs)

    def finish(self, joined: Tensor) -> Tensor | None:
        """The joined results, `[pos, heads * d_head]`, after writes; `None` without any."""
        chunks, (module, kwargs) = self._chunks, self._call
        self._chunks, self._call = [], None
        query, key, value = (torch.cat(parts, 2) for parts in zip(*chunks, strict=True))
        lengths = torch.tensor([q.shape[2] for q, _, _ in chunks], device=query.device)
        chunk_of = torch.arange(len(chunks), device=query.device).repeat_interleave(lengths)
        together = chunk_of[:, None] == chunk_of[None, :]
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(together, zero, torch.finfo(query.dtype).min)[None, None]
        kwargs = {k: v for k, v in kwargs.items() if k not in ("attention_mask", "is_causal")}
        watch = _SoftmaxWatch(self._tap, None, key.shape[2])
        with watch:
            out, _ = _eager_of(module)(module, query, key, value, mask, **kwargs)
        if torch.is_grad_enabled():
            return out.reshape(joined.shape)
        if not watch.changed_rows:
            return None
        return watch.merged(out, joined.view_as(out)).reshape(joined.shape)


def _eager_of(module: nn.Module) -> Callable | None:
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _of_rows(given: Any, rows: Sequence[int], n_queries: int) -> Any:
    """Of what stands beside queries and keys, a bias by position say, the part for some queries."""
    by_query = isinstance(given, Tensor) and given.dim() == 4 and given.shape[2] == n_queries
    return given[:, :, rows] if by_query else given


def _additive_mask(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool | None,
    rows: Sequence[int] | None,
) -> Tensor | None:
    """Sdpa's mask (none, causal by flag, boolean or additive) as eager attention wants it.

    Args:
        module: The attention module.
        query: Its queries, `[batch, head, query, d_head]`.
        key: Its keys.
        mask: Sdpa's mask.
        is_causal: Sdpa's flag.
        rows: The queries wanted; `None` for all.
    """
    n_query, n_key = query.shape[2], key.shape[2]
    if mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        if not causal:
            return None
        if n_query == 1:  # it sees every key; some eager attentions add a mask in any case
            return torch.zeros((1, 1, 1, n_key), dtype=query.dtype, device=query.device)
        wanted = torch.arange(n_query) if rows is None else torch.tensor(rows)
        mask = (torch.arange(n_key) <= wanted[:, None])[None, None].to(query.device)
    elif rows is not None and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        return torch.where(mask, zero, torch.finfo(query.dtype).min)
    return mask


class _SoftmaxWatch(TorchFunctionMode):
    """Shows the argument and the result of the softmax inside an attention function to a tap.

    Every eager attention of transformers is one softmax over keys, whatever stands around it (soft
    caps, biases, grouped heads), so this needs no code of its own for any family.

    Args:
        tap: What is shown to.
        rows: The queries that are shown; `None` for all.
        n_keys: How many keys there are.
        whole: Whether the attention function computes the other queries, too.
    """

    def __init__(self, tap: Tap, rows: Sequence[int] | None, n_keys: int, *, whole: bool = False):
        TorchFunctionMode.__init__(self)  # a class that is sent elsewhere loses what super() needs
        self.tap, self.rows, self.n_keys, self.whole = tap, rows, n_keys, whole
        self.changed_rows: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _SOFTMAX:
            return func(*args, **kwargs)
        scores = self._show("scores", args[0])
        return self._show("pattern", func(scores, *args[1:], **kwargs))

    def merged(self, eager: Tensor, plain: Tensor) -> Tensor:
        """What attention gives: eager's result for the queries that a tap has changed.

        Args:
            eager: Its result for the queries shown, `[batch, query, head, d_head]`.
            plain: The result of the attention that the model uses, for every query.
        """
        changed = torch.stack(self.changed_rows).any(0).transpose(1, 2).unsqueeze(-1)
        if self.rows is None:
            merged = torch.where(changed, eager, plain)
            # laid out in memory as the model expects it, which may take views of it
            return merged.contiguous() if plain.is_contiguous() else merged
        merged = plain.clone()
        merged[:, self.rows] = torch.where(changed, eager, plain[:, self.rows])
        return merged

    def _show(self, stage: str, x: Tensor) -> Tensor:
        part = self.whole and self.rows is not None
        shown = x[:, :, self.rows] if part else x
        new = self.tap.show(stage, shown, self.rows, self.n_keys)
        if new is None:
            return x
        self.changed_rows.append((new != shown).any(-1))
        return x.index_copy(2, torch.tensor(self.rows, device=x.device), new) if part else new
