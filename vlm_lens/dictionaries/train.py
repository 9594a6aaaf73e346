"""Training a TopK autoencoder on a stream of activations (Gao et al. 2024, arXiv 2406.04093).

```
order of prompts (drawn anew each pass) -> buffer of places -> shuffled -> batches -> steps
                                           |<-------------- one chunk --------------->|
```

Memory holds one buffer; where that holds the places of all prompts, they are read once. With a
folder, everything that the next chunk depends on is written at the end of each: a run that was
killed goes on there, and ends with the numbers that it would have had. The loss is the share of
variance that is not reconstructed, plus, for features that have not been used for a while, the
share of that rest which they explain (AuxK, appendix A.2 there).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlm_lens.dictionaries.stream import places_read
from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.gradients import recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.storage.files import read_tensors, write_tensors
from vlm_lens.storage.folder import RunFolder

_HOLDS, _STATE = "the training of a dictionary", "state.safetensors"
_AUX, _K_AUX = 1 / 32, 2  # weight of the loss of dead features; how many times k of them


@dataclass(frozen=True)
class Settings:
    """What a training depends on beside model, prompts and point.

    Attributes:
        n_features: How many features.
        k: How many stay at each place.
        places: On how many places it is trained, prompts being read again as often as needed.
        batch: Places a step.
        buffer: Places that are held and shuffled.
        lr: Learning rate of Adam; it falls to 0 over the last fifth.
        dead_after: Places after which a feature that was not used counts as dead.
        seed: Of initial weights and orders.
    """

    n_features: int
    k: int
    places: int
    batch: int
    buffer: int
    lr: float
    dead_after: int
    seed: int

    def __post_init__(self):
        for name in ("n_features", "k", "places", "batch", "buffer", "dead_after"):
            if getattr(self, name) < 1:
                raise DictionaryError(f"{name} is at least 1, not {getattr(self, name)}.")
        if self.k > self.n_features:
            raise DictionaryError(f"k={self.k} is more than the {self.n_features} features.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise DictionaryError(f"lr={self.lr} is no learning rate.")

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return math.ceil(self.places / self.batch)


def train(
    vlm: HookedModel,
    prompts: Sequence[Any],
    point: Point,
    settings: Settings,
    *,
    at: Position | None = None,
    batch_size: int = 16,
    save: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The tensors of a trained `SparseCoder`; see `Dictionary.train`."""
    if not prompts:
        raise DictionaryError("A dictionary is trained on at least one prompt.")
    reader = _Reader(vlm, prompts, point, settings, at, batch_size)
    if save is None:
        return _run(reader, settings, None, progress)
    identity = run_identity(
        vlm, prompts=[_content(p) for p in prompts], point=point.name, position=at,
        settings=asdict(settings), batch_size=batch_size,
    )  # fmt: skip
    with RunFolder(save, identity, holds=_HOLDS, error=DictionaryError) as folder:
        return _run(reader, settings, folder, progress)


def _run(
    reader: _Reader, settings: Settings, folder: RunFolder | None, progress: bool
) -> dict[str, Tensor]:
    path = None if folder is None else folder.path / _STATE
    state = _State.load(path) if path is not None and path.is_file() else None
    if folder is not None and (state is None or state.step < settings.steps):
        folder.must_be_writable()
    with tqdm(
        total=settings.steps, desc="training", unit="step", disable=not progress,
        initial=0 if state is None else state.step,
    ) as bar:  # fmt: skip
        while state is None or state.step < settings.steps:
            chunk, read = (0, 0) if state is None else (state.chunk, state.read)
            x, read = reader.buffer(read)
            if state is None:
                state = _State.begin(x, settings)
            order = torch.randperm(len(x), generator=_generator(settings.seed, 1, chunk))
            for index in order.split(settings.batch):
                if state.step == settings.steps:
                    break
                bar.set_postfix(unexplained=f"{state.learn(x[index], settings):.3f}")
                bar.update()
            state.chunk, state.read = chunk + 1, read
            if path is not None:
                state.save(path)
    return state.coder(settings)


class _Reader:
    """Fills buffers with places, prompt after prompt."""

    def __init__(
        self, vlm: HookedModel, prompts: Sequence[Any], point: Point, settings: Settings,
        at: Position | None, batch_size: int,
    ):  # fmt: skip
        self._vlm, self._prompts, self._point = vlm, prompts, point
        self._settings, self._at, self._batch_size = settings, at, batch_size
        self._all: Tensor | None = None  # the places of all prompts, where a buffer holds them

    def buffer(self, read: int) -> tuple[Tensor, int]:
        """Places for one chunk, and how many prompts have been read then.

        Args:
            read: How many were read before.

        Raises:
            DictionaryError: The prompts have no such place.
        """
        n = len(self._prompts)
        if self._all is None and read % n == 0:
            x, taken = self._fill(range(n))
            if taken == n:
                self._all = x
        if self._all is not None:
            return self._all, read + n
        x, taken = self._fill(self._order(read))
        return x, read + taken

    def _fill(self, numbers: Iterable[int]) -> tuple[Tensor, int]:
        """Places of prompts until the buffer is full, and of how many prompts."""
        parts, size, taken, numbers = [], 0, 0, iter(numbers)
        while size < self._settings.buffer:
            some = [self._prompts[i] for i in islice(numbers, 8 * self._batch_size)]
            if not some:
                break
            for part in places_read(
                self._vlm, self._point, some, at=self._at, batch_size=self._batch_size
            ):
                parts.append(part.x.float().cpu())
                size += len(part.x)
            taken += len(some)
            if not size and taken >= len(self._prompts):
                break
        if not size:
            raise DictionaryError(f"These prompts have no place at {self._point.name}.")
        return torch.cat(parts), taken

    def _order(self, read: int) -> Iterator[int]:
        """The numbers of the next prompts: one pass after another, each in an order of its own."""
        n = len(self._prompts)
        for turn in count(read // n):
            order = torch.randperm(n, generator=_generator(self._settings.seed, 2, turn)).tolist()
            yield from order[read % n if turn == read // n else 0 :]


class _State:
    """Weights, optimizer and counters."""

    def __init__(self, weights: dict[str, Tensor], scale: Tensor, idle: Tensor, lr: float):
        self.weights = {name: nn.Parameter(w) for name, w in weights.items()}
        self.scale, self.idle = scale, idle
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=lr, betas=(0.9, 0.999))
        self.step = self.chunk = self.read = 0

    @classmethod
    def begin(cls, x: Tensor, settings: Settings) -> _State:
        """The decoder's rows are places of the first buffer; the encoder is its transpose."""
        draw = _generator(settings.seed, 0)
        mean = x.mean(0)
        scale = (x - mean).pow(2).sum(-1).mean().sqrt().clamp(min=1e-12)
        chosen = torch.randint(len(x), (settings.n_features,), generator=draw)
        noise = torch.randn(settings.n_features, x.shape[1], generator=draw)
        rows = (x[chosen] - mean) / scale + 0.5 * noise / math.sqrt(x.shape[1])
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        weights = {
            "w_enc": rows.T.clone(), "b_enc": torch.zeros(settings.n_features),
            "w_dec": rows, "b_dec": mean / scale,
        }  # fmt: skip
        idle = torch.zeros(settings.n_features, dtype=torch.long)
        return cls(weights, scale, idle, settings.lr)

    @recording()
    def learn(self, x: Tensor, settings: Settings) -> float:
        """One step; the share of the batch's variance that was not explained."""
        left = (settings.steps - self.step) / max(settings.steps * 0.2, 1)
        self.optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, left)
        w, x = self.weights, x / self.scale
        z = (x - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
        kept = z.topk(settings.k, dim=-1)
        features = torch.zeros_like(z).scatter(-1, kept.indices, kept.values.relu())
        rest = x - features @ w["w_dec"] - w["b_dec"]
        total = (x - x.mean(0)).pow(2).sum().clamp(min=1e-12)
        unexplained = rest.pow(2).sum() / total
        dead = self.idle >= settings.dead_after
        loss = unexplained + self._of_dead(z, rest.detach(), dead, settings)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            rows, grad = w["w_dec"], w["w_dec"].grad
            grad -= (grad * rows).sum(-1, keepdim=True) * rows  # along a row only its norm changes
            self.optimizer.step()
            rows /= rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            self.idle += len(x)
            self.idle[(features > 0).any(0)] = 0
        self.step += 1
        return float(unexplained.detach())

    def _of_dead(self, z: Tensor, rest: Tensor, dead: Tensor, settings: Settings) -> Tensor:
        n_dead = int(dead.sum())
        if not n_dead:
            return z.new_zeros(())
        hidden = z.masked_fill(~dead, -torch.inf)
        kept = hidden.topk(min(_K_AUX * settings.k, n_dead), dim=-1)
        features = torch.zeros_like(z).scatter(-1, kept.indices, kept.values.relu())
        missed = (rest - features @ self.weights["w_dec"]).pow(2).sum()
        return _AUX * missed / rest.pow(2).sum().clamp(min=1e-12)

    def coder(self, settings: Settings) -> dict[str, Tensor]:
        """The tensors of a coder, in the units of the activation."""
        w = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        b_dec = w["b_dec"] * self.scale
        return {
            "w_enc": w["w_enc"], "b_enc": w["b_enc"] * self.scale, "w_dec": w["w_dec"],
            "b_dec": b_dec, "pre_bias": b_dec, "k": torch.tensor(settings.k),
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Writes everything that the next chunk depends on."""
        held = {"scale": self.scale, "idle": self.idle,
                "counts": torch.tensor([self.step, self.chunk, self.read])}  # fmt: skip
        for name, weight in self.weights.items():
            held[name] = weight.detach()
            for key, value in self.optimizer.state[weight].items():
                held[f"{name}.{key}"] = value
        write_tensors(path, {name: tensor.clone() for name, tensor in held.items()})

    @classmethod
    def load(cls, path: Path) -> _State:
        """Reads what `save` wrote."""
        held, _ = read_tensors(path)
        names = ("w_enc", "b_enc", "w_dec", "b_dec")
        state = cls({name: held[name] for name in names}, held["scale"], held["idle"], 1.0)
        for name, weight in state.weights.items():
            state.optimizer.state[weight] = {
                key.removeprefix(f"{name}."): value
                for key, value in held.items()
                if key.startswith(f"{name}.")
            }
        state.step, state.chunk, state.read = held["counts"].tolist()
        return state


def _generator(*numbers: int) -> torch.Generator:
    seed = 0
    for value in numbers:
        seed = (seed * 1_000_003 + value + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def _content(prompt: Any) -> Any:
    if hasattr(prompt, "inputs"):
        return prompt.inputs, prompt.layouts
    return getattr(prompt, "text", prompt), tuple(getattr(prompt, "images", ()))


__all__ = ["Settings", "train"]
