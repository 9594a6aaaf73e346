"""Digests of a model's weights: which model it is, whatever it is called, as it is now.

Content: every tensor is read as 64-bit integers, mixed, multiplied by fixed odd numbers and summed
in rows of 2^14, modulo 2^64, where the tensor lies; the sums are hashed by SHA-256. Integers wrap
around, so that the order of the sum, the device and the number of threads do not matter. It reads
each weight once: about 1 s for each GB on one CPU core; a GPU needs a small fraction of that.

For every call there is `weights_digest(model)`, which hashes the content again only where a tensor
was replaced, changed in place (its version counter), or has other values at a few places (changes
past autograd, by `.data`, are not counted). A change past autograd that misses these places is
seen by `exact=True` alone, which is what everything that is written to disk asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from secrets import token_hex
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_ROW = 1 << 14  # integers that are summed at once
_BLOCK = {"cpu": 1 << 16}  # integers that are mixed at once: what a core's cache holds
_SMALL = 1 << 16  # bytes that are hashed as they are
_SAMPLES = 8
_SWITCH = "adapters "  # what is said of adapters begins so; it is no weight that cannot be read

_Named = tuple[str, Tensor | None, str]
_KNOWN: WeakKeyDictionary[nn.Module, tuple[str, WeightsDigest]] = WeakKeyDictionary()


@dataclass(frozen=True)
class WeightsDigest:
    """What a model's weights are.

    Attributes:
        text: The digest, one for equal weights of the same dtypes in a model of the same class.
        signs: A digest of signs, the same however the weights are rounded.
        unread: Weights that could not be read (told by name, shape and dtype only), with the
            reason; none for most models.
    """

    text: str
    signs: str
    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.unread:
            return self.text
        more = f" and {len(self.unread) - 1} more" if len(self.unread) > 1 else ""
        return f"{self.text} (without {self.unread[0]}{more})"


def weights_digest(model: nn.Module, *, exact: bool = False) -> WeightsDigest:
    """A digest of all parameters and buffers of a model, as they are now.

    Quantised, offloaded and sharded weights are read as far as they can be; see `unread`.

    Args:
        model: A torch module.
        exact: Reads every weight, also where nothing seems to have changed since the last time.
    """
    tensors = list(_tensors(model, fetch=exact))
    state = _state(tensors)
    known = _KNOWN.get(model)
    if not exact and known is not None and known[0] == state:
        return known[1]
    made = _hashed(type(model).__qualname__, tensors)
    _KNOWN[model] = state, made
    return made


def weights_state(*modules: nn.Module) -> str:
    """What differs in this process where a parameter or buffer was replaced or changed in place.

    It reads a few values of each only: for what is kept between the calls of one process.

    Args:
        *modules: Torch modules.
    """
    return _state([one for module in modules for one in _tensors(module, fetch=False)])


def is_plain(weight: Any) -> bool:
    """Whether something is a tensor of its own, not a quantised or sharded one in its place."""
    return isinstance(weight, Tensor) and not hasattr(type(weight), "__tensor_flatten__")


def is_slice(weight: Tensor) -> bool:
    """Whether a process holds a part of a weight only, as in a tensor-parallel model."""
    return hasattr(weight, "device_mesh")


# ---------------------------------------------------------------------- what there is


def _tensors(model: nn.Module, *, fetch: bool) -> Iterator[_Named]:
    """Name, tensor, and for one that cannot be read, or is none, what is said instead.

    Args:
        model: The model.
        fetch: Whether weights are fetched that accelerate keeps elsewhere, the disk perhaps.
    """
    for prefix, module in model.named_modules():
        said = f"{prefix}." if prefix else ""
        if "_disable_adapters" in vars(module):
            yield f"{said}adapters", None, _switched(module)
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and not _recomputed(module, name):
                yield from _parts(said + name, tensor, module if fetch else None, name)
        if hasattr(module, "get_extra_state") and _has_extra_state(module):
            yield f"{said}extra_state", None, "state of its own"
        packed = getattr(module, "_packed_params", None)
        if packed is not None and not isinstance(packed, nn.Module):
            yield from _packed(said, module)


def _switched(module: Any) -> str:
    """Which of PEFT's adapters act in a layer, and how much."""
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    return _SWITCH + repr([getattr(module, name, None) for name in names])


def _recomputed(module: nn.Module, name: str) -> bool:
    """Whether a run itself sets a buffer: frequencies that depend on the prompt's length."""
    return name.endswith("inv_freq") and getattr(module, "rope_type", "") in ("dynamic", "longrope")


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _packed(prefix: str, module: Any) -> Iterator[_Named]:
    """Weights that torch's own quantised layers keep out of sight."""
    try:
        weight, bias = module.weight(), module.bias()
        facts = torch.tensor([weight.q_scale(), weight.q_zero_point()], dtype=torch.float64)
        held = {"weight": weight.int_repr(), "bias": bias, "scale": facts}
    except (AttributeError, RuntimeError, TypeError):  # per channel, or another kind of layer
        try:
            held = {"weight": module.weight().dequantize(), "bias": module.bias()}
        except (AttributeError, RuntimeError, TypeError):
            yield f"{prefix}weight", None, "quantised"
            return
    for name, tensor in held.items():
        if tensor is not None:
            yield prefix + name, tensor, ""


def _parts(name: str, tensor: Tensor, module: nn.Module | None, own: str) -> Iterator[_Named]:
    """A tensor itself, or the plain ones that a quantised or sharded one is made of."""
    if tensor.device.type == "meta":
        fetched = None if module is None else _offloaded(module, own)
        yield (name, fetched, "") if fetched is not None else (name, None, "offloaded")
    elif is_plain(tensor):
        yield name, tensor, ""
    elif hasattr(tensor, "__tensor_flatten__") and (held := tensor.__tensor_flatten__()[0]):
        for inner in held:
            if isinstance(part := getattr(tensor, inner), Tensor):
                yield from _parts(f"{name}.{inner}", part, module, own)
        if is_slice(tensor):
            yield name, None, "a slice of it is here"
    else:
        yield name, None, f"held as {type(tensor).__name__}"


def _offloaded(module: Any, name: str) -> Tensor | None:
    """A weight that accelerate keeps on the CPU or on disk between two calls."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        kept = getattr(one, "weights_map", None)
        if kept is not None:
            try:
                return kept[name]
            except (KeyError, OSError):
                return None
    return None


# ---------------------------------------------------------------------- digests


def _state(tensors: list[_Named]) -> str:
    """What changes where a weight does: storage, version, shape, and a few values of each."""
    facts, samples = [], {}
    for name, tensor, why in tensors:
        if tensor is None:
            facts.append((name, why))
            continue
        # tensors made under inference mode count no versions: they are hashed every time
        version = token_hex(8) if tensor.is_inference() else tensor._version
        facts.append((name, tensor.data_ptr(), version, tuple(tensor.shape), tensor.stride()))
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else None
        if flat is not None and len(flat):
            few = flat[:: max(1, len(flat) // _SAMPLES)]
            samples.setdefault((few.dtype, few.device), []).append(few)
    digest = hashlib.sha256(repr(facts).encode())
    for few in samples.values():
        digest.update(_bytes(torch.cat(few)).cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _hashed(model: str, tensors: list[_Named]) -> WeightsDigest:
    text, signs, unread = hashlib.sha256(model.encode()), hashlib.sha256(model.encode()), []
    for name, tensor, why in tensors:
        if tensor is None:
            unread += [] if why.startswith(_SWITCH) else [f"{name}: {why}"]
            text.update(f"{name} {why}".encode())
            continue
        text.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        text.update(_sums(_bytes(tensor.detach())))
        if tensor.is_floating_point():
            signs.update(f"{name} {tuple(tensor.shape)}".encode())
            for part in tensor.detach().contiguous().reshape(-1).split(1 << 24):
                signs.update(_sums(_bytes(part.signbit())))
    return WeightsDigest(text.hexdigest()[:16], signs.hexdigest()[:16], tuple(unread))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.dtype != torch.uint8 else flat


def _sums(raw: Tensor) -> bytes:
    """The weighted sums of bytes, row by row; few bytes as they are."""
    size = raw.numel()
    if size <= _SMALL:
        return raw.cpu().numpy().tobytes()
    whole = size // (8 * _ROW) * (8 * _ROW)
    rest = raw.new_zeros((size - whole + 7) // 8 * 8)
    rest[: size - whole] = raw[whole:]
    body = raw[:whole]
    if body.storage_offset() % 8:
        body = body.clone()
    factors = _factors(str(raw.device))
    found = []
    rows = max(1, _BLOCK.get(raw.device.type, 1 << 22) // _ROW)
    for block in body.view(torch.int64).view(-1, _ROW).split(rows):
        found.append(_mixed(block).mul_(factors).sum(-1))
    found.append((_mixed(rest.view(torch.int64)) * factors[: len(rest) // 8]).sum(-1, keepdim=True))
    return torch.cat(found).cpu().numpy().tobytes()


def _mixed(numbers: Tensor) -> Tensor:
    """Spreads high bits over low ones, which a product modulo 2^64 alone would not."""
    return numbers ^ (numbers >> 29)


@lru_cache(maxsize=8)
def _factors(device: str) -> Tensor:
    """Odd numbers, fixed for all time."""
    raw = b"".join(hashlib.sha256(i.to_bytes(4, "little")).digest() for i in range(_ROW // 4))
    return (torch.frombuffer(bytearray(raw), dtype=torch.int64) | 1).to(device)


__all__ = ["WeightsDigest", "is_plain", "weights_digest", "weights_state"]
