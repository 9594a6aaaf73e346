"""One tiny forward, recorded: what every module takes and gives, and what attention mixes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# how far two computations of the same number may be apart, by dtype, relative to the largest
_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
_MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_SOFTMAX = {torch.softmax, nn.functional.softmax, Tensor.softmax}


@dataclass(frozen=True)
class Call:
    """The last call of a module.

    Attributes:
        given: The tensors among its arguments: position or keyword -> a copy.
        all: Copies of the tensors that it returned; `None` for what is none.
        several: Whether it returned several things.
        live: The first of them itself.
    """

    given: Mapping[int | str, Tensor]
    all: tuple[Tensor | None, ...]
    several: bool
    live: Tensor | None = None

    @property
    def gave(self) -> Tensor | None:
        """The tensor that it returned, alone or first of several."""
        return self.all[0] if self.all else None

    @property
    def overwritten(self) -> bool:
        """Whether the model changed in place what it returned."""
        return self.live is not None and not same(self.live, self.gave)

    def argument(self, value: Tensor) -> int | str | None:
        """Which argument holds a value."""
        return next((key for key, x in self.given.items() if same(x, value)), None)


@dataclass(frozen=True)
class Mixing:
    """One call of an attention function.

    Attributes:
        query: `[batch, head, pos, d]`, as it enters; all are `None` where they are not seen.
        key: Keys, likewise.
        value: Values, likewise.
        mixed: What it gave, `[batch, head, pos, d]`.
        times: How many times its module mixed.
        by_interface: Whether it was one of transformers' attention functions, in which alone
            scores and patterns can be shown.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mixed: Tensor | None = None
    times: int = 1
    by_interface: bool = True

    @property
    def crosses(self) -> bool:
        """Whether keys are of another sequence than queries, as many or not."""
        query, key = self.query, self.key
        return query is not None and key is not None and key.shape[2] != query.shape[2]


@dataclass
class Recording:
    """A recorded forward. Copies lie on one device, wherever the model's modules compute.

    Attributes:
        calls: Path of a module -> its last call, in the order in which they ended.
        attention: Path of a module -> the attention that it called.
        outputs: Path of a module -> what each of its calls gave, in order.
        logits: What the model gave.
        pictured: Whether it was given a picture beside tokens that stand for none.
        device: Where the copies lie.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    attention: dict[str, Mixing] = field(default_factory=dict)
    logits: Tensor | None = None
    pictured: bool = False
    device: torch.device | None = None

    def copy(self, x: Tensor) -> Tensor:
        """What a tensor holds now, on the device of the first that was copied."""
        self.device = self.device or x.device
        return x.detach().to(self.device, copy=True)

    def times(self, path: str) -> int:
        """How many times a module was called and gave a tensor."""
        return len(self.outputs.get(path, ()))

    def inside(self, path: str) -> Iterator[tuple[str, Call]]:
        """The calls of modules within one, by their paths from there, in order."""
        for name, call in self.calls.items():
            if name.startswith(f"{path}."):
                yield name.removeprefix(f"{path}."), call


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers, in the same or another shape."""
    if a is None or b is None or a.numel() != b.numel() or not a.numel():
        return False
    (largest_a, some_a), (largest, some_b) = _summary(a), _summary(b)
    if not (isfinite(largest_a) and isfinite(largest)):
        return False
    allowed = tolerance(a, b) * largest
    if any(abs(x - y) > 2 * allowed for x, y in zip(some_a, some_b, strict=True)):
        return False  # most pairs are told apart by these few
    a, b = a.float().reshape(-1), b.to(a.device).float().reshape(-1)
    return bool((a - b).abs().max() <= allowed)


def _summary(x: Tensor) -> tuple[float, list[float]]:
    """The largest magnitude of a tensor and some of its numbers, kept with it."""
    found = getattr(x, "_summary", None)
    if found is None:
        flat = x.detach().float().reshape(-1)
        some = flat[:: max(1, len(flat) // 5)][:5]
        largest, *numbers = torch.cat([flat.abs().max()[None], some]).tolist()
        found = x._summary = (largest, numbers)
    return found


def tolerance(*tensors: Tensor) -> float:
    """How far numbers may be apart, relative to the largest."""
    return max(_TOLERANCE.get(t.dtype, 1e-4) for t in tensors)


@torch.no_grad()
def record_text(model: nn.Module, ids: Tensor, **more: Tensor) -> Recording:
    """Runs a model on a few tokens without pictures; nothing is left behind.

    Args:
        model: The model.
        ids: Tokens, `[1, pos]`.
        **more: What else its forward asks for.
    """
    found, out = record(
        model,
        lambda: model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
            return_dict=True,
            **more,
        ),
    )
    found.logits = getattr(out, "logits", None)
    found.pictured = bool(more)
    return found


def record(model: nn.Module, run: Callable[[], Any]) -> tuple[Recording, Any]:
    """Runs a model, or a part of it; nothing is left behind. Gradients are as the caller has them.

    Args:
        model: The model.
        run: What runs it.

    Returns:
        What its modules did, and what `run` gave.
    """
    found, stack = Recording(), []
    handles = []
    for path, module in model.named_modules():
        if not path or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        handles.append(
            module.register_forward_pre_hook(
                _enter(found, stack, path), with_kwargs=True, prepend=True
            )
        )
        handles.append(module.register_forward_hook(_leave(found, stack, path)))
    training = model.training
    try:
        model.eval()
        with _AttentionWatch(found, stack):
            out = run()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found, out


def _enter(found: Recording, stack: list, path: str) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = {k: found.copy(v) for k, v in [*enumerate(args), *kwargs.items()]
                 if isinstance(v, Tensor) and v.is_floating_point()}  # fmt: skip
        stack.append((path, given))

    return hook


def _leave(found: Recording, stack: list, path: str) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        while stack:
            name, given = stack.pop()
            if name == path:
                break
        several = isinstance(output, tuple | list)
        outputs = output if several else (output,)
        copies = tuple(found.copy(x) if isinstance(x, Tensor) else None for x in outputs)
        live = outputs[0].detach() if copies and copies[0] is not None else None
        found.calls.pop(path, None)
        found.calls[path] = Call(given, copies, several, live)
        if live is not None:
            found.outputs.setdefault(path, []).append(copies[0])

    return hook


class _AttentionWatch(TorchFunctionMode):
    """Sees what attention functions take and give, and for which module."""

    def __init__(self, found: Recording, stack: list):
        super().__init__()
        self._found, self._stack = found, stack
        self._scored: dict[str, tuple[Tensor, Tensor]] = {}
        self._softmaxed: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._stack:
            return out
        path = self._stack[-1][0]
        if func is nn.functional.scaled_dot_product_attention:
            self._note(path, *args[:3], out)
        elif func in _MATMUL and out.dim() == 4 and len(args) == 2:
            if path in self._softmaxed:
                self._softmaxed.discard(path)
                query, key = self._scored.pop(path, (None, None))
                self._note(path, query, None if key is None else key.mT, args[1], out)
            else:
                self._scored[path] = tuple(x.detach() for x in args)
        elif func in _SOFTMAX and out.dim() == 4:
            self._softmaxed.add(path)
            self._found.attention.setdefault(path, Mixing(times=0, by_interface=_by_interface()))
        return out

    def _note(self, path: str, *tensors: Tensor | None) -> None:
        times = getattr(self._found.attention.get(path), "times", 0) + 1
        copies = (None if x is None else self._found.copy(x) for x in tensors)
        self._found.attention[path] = Mixing(*copies, times=times, by_interface=_by_interface())


def _by_interface() -> bool:
    """Whether one of transformers' attention functions is being run."""
    frame = sys._getframe(1)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_code.co_name in ("sdpa_attention_forward", "eager_attention_forward"):
            held = frame.f_locals
            config = getattr(held.get("module"), "config", None)
            chosen = getattr(config, "_attn_implementation", None) or "eager"
            # the module calls eager attention itself: no other can be put in its place
            if chosen != "eager" and frame.f_code.co_name.startswith("eager"):
                return False
            # eager attention multiplies by the scale that it is given; sdpa needs none
            return held.get("scaling") is not None
        frame = frame.f_back
    return False
