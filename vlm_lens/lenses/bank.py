"""A bank of contextual embeddings: what a language model's states are where text is read.

```
text --model--> states at each position, every layer --unit length--> shards on disk
entry = (token, its prefix);  entry x layer -> vector [d]
```

Positions 0 and 1 are left out (attention sinks live there), each prefix is there once, and a token
has a number of contexts at the most (LatentLens, arXiv 2602.00462).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.integers import as_integer
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.keywords import Answering, answering
from vlm_lens.layout.kinds import TEXT
from vlm_lens.layout.layout import Layout
from vlm_lens.lenses.base import LensError
from vlm_lens.lenses.embedding_lens import unit
from vlm_lens.lenses.logit_lens import LogitLens
from vlm_lens.points.placement import together
from vlm_lens.reading.many import batches
from vlm_lens.storage.files import read_json, write_tensors
from vlm_lens.storage.folder import MANIFEST, RunFolder
from vlm_lens.tokens import IMAGE

_HOLDS, _TEXTS = "a bank of contextual embeddings", "texts.json"
_CELLS = 1 << 24  # cosines in memory at a time
CONTEXTS = ("This is a {}", "I can see the {}", "a photo of {}", "There was one {}")


def in_contexts(words: Iterable[str], contexts: Sequence[str] = CONTEXTS) -> list[str]:
    """Each word at the end of some contexts: texts for a bank from a list of words."""
    return [context.format(word) for word in words for context in contexts]


@dataclass(frozen=True)
class Bank(Answering):
    """Contextual embeddings in a folder.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def __post_init__(self):
        object.__setattr__(self, "folder", Path(self.folder))
        held = read_json(self.folder / MANIFEST)
        if not isinstance(held, dict) or held.get("holds") != _HOLDS:
            raise LensError(
                f"{self.folder} holds no bank: Bank.build(vlm, texts, folder) makes it."
            )

    @classmethod
    @answering
    def build(
        cls,
        vlm: HookedModel,
        texts: Sequence[str],
        folder: str | Path,
        *,
        points: str | tuple[str, ...] = "blocks.*.hook_resid_post",
        per_token: int = 50,
        skip: int = 2,
        batch_size: int = 16,
        dtype: torch.dtype = torch.float16,
        shard: int = 4096,
        progress: bool = True,
    ) -> Self:
        """Reads texts and keeps what the model makes of their tokens.

        What was read is written and dropped, so memory does not grow with the texts; a build that
        was killed goes on from its last shard.

        Args:
            vlm: The model; a vision-language model reads them with its own language model.
            texts: Texts without pictures. `in_contexts(words)` makes them of a list of words.
            folder: Where the bank is kept.
            points: Which layers.
            per_token: How many contexts a token has at the most.
            skip: How many positions at the beginning of a text are left out.
            batch_size: How many texts run together.
            dtype: In which the vectors, of length 1, are kept.
            shard: How many entries a file holds, about.
            progress: Whether to show a progress bar.

        Raises:
            LensError: No texts, texts with pictures, or none with a token after the first ones.
            FolderError: The folder holds something else.
        """
        listed = _texts(texts)
        names = LogitLens(points).names(vlm)
        for name, value in (("per_token", per_token), ("shard", shard), ("batch_size", batch_size)):
            if as_integer(value, name, LensError) < 1:
                raise LensError(f"{name} is at least 1, not {value}.")
        identity = run_identity(
            vlm, texts=listed, points=names, settings=(per_token, skip, str(dtype))
        )
        about = {"points": names, "model": asdict(vlm.facts), "skip": skip}
        with RunFolder(folder, identity, holds=_HOLDS, about=about, error=LensError) as opened:
            if not (opened.path / _TEXTS).exists():
                opened.write(_TEXTS, json.dumps(listed, ensure_ascii=False))
            chosen = _Chosen.of(opened.path, per_token, skip)
            _write_entries(
                vlm, listed, names, opened.path, chosen, batch_size, dtype, shard, progress
            )
        bank = cls(Path(folder))
        if not len(bank):
            raise LensError(
                f"No text has a token after its first {skip}, so there is nothing to compare with."
            )
        return bank

    def __len__(self) -> int:
        """How many entries there are, each at every layer."""
        return sum(len(tokens) for tokens, _ in self._index)

    @property
    def points(self) -> tuple[str, ...]:
        """The layers of each entry."""
        return tuple(read_json(self.folder / MANIFEST)["points"])

    @property
    def source(self) -> ModelFacts:
        """The model that it was built with."""
        return ModelFacts(**read_json(self.folder / MANIFEST)["model"])

    @cached_property
    def tokens(self) -> Int[Tensor, " tokens"]:
        """The tokens that it has entries of, in the order of their ids."""
        return torch.cat([tokens for tokens, _ in self._index]).unique()

    @cached_property
    def _index(self) -> list[tuple[Tensor, Tensor]]:
        """Of each shard the tokens, and text and position of each entry."""
        found = []
        for path in _shards(self.folder):
            held = _some(path, "tokens", "places")
            found.append((held["tokens"], held["places"]))
        return found

    def context(self, entry: int) -> tuple[str, int]:
        """The text of an entry and its position there, counted without padding."""
        for tokens, places in self._index:
            if entry < len(tokens):
                text, position = places[entry].tolist()
                return self._texts[text], position
            entry -= len(tokens)
        raise LensError(f"The bank has {len(self)} entries.")

    @cached_property
    def _texts(self) -> list[str]:
        return read_json(self.folder / _TEXTS)

    @answering
    def search(
        self, states: Float[Tensor, "positions d_model"]
    ) -> tuple[Float[Tensor, "positions tokens"], Int[Tensor, "positions tokens"]]:
        """For each token its entry nearest to each state, over all contexts and layers.

        Args:
            states: The states.

        Returns:
            Cosines, by `tokens`; and numbers of what they were found by, `entry * layers + layer`.
        """
        mine = unit(states)
        shape, device = (len(mine), len(self.tokens)), mine.device
        best = torch.full(shape, -2.0, device=device)
        source = torch.zeros(shape, dtype=torch.long, device=device)
        first = 0
        for path, (tokens, _) in zip(_shards(self.folder), self._index, strict=True):
            values = _some(path, "values")["values"].flatten(0, 1).to(device)
            layers = len(values) // len(tokens)
            of = torch.searchsorted(self.tokens, tokens).repeat_interleave(layers).to(device)
            size = max(1, _CELLS // len(mine))
            for start in range(0, len(values), size):
                part = slice(start, start + size)
                cosine = mine @ values[part].float().T
                column = of[part].expand(len(mine), -1)
                best.scatter_reduce_(1, column, cosine, "amax")
                number = torch.arange(start, start + cosine.shape[1], device=device) + first
                won = torch.where(cosine >= best.gather(1, column), number, -1)
                new = torch.full(shape, -1, device=device).scatter_reduce(1, column, won, "amax")
                source = torch.where(new >= 0, new, source)
            first += len(values)
        return best, source

    def __repr__(self) -> str:
        return (
            f"Bank({len(self)} entries of {len(self.tokens)} tokens at {len(self.points)} layers, "
            f"{self.source.name}, {self.folder})"
        )


# ---------------------------------------------------------------------- making it


class _Chosen:
    """Which entries there are already: prefixes by hash, and how many contexts a token has."""

    def __init__(self, per_token: int, skip: int):
        self.per_token, self.skip = per_token, skip
        self.prefixes: set[int] = set()
        self.contexts: Counter[int] = Counter()
        self.entries = self.batches = 0

    @classmethod
    def of(cls, folder: Path, per_token: int, skip: int) -> _Chosen:
        """What the shards of a folder hold."""
        chosen = cls(per_token, skip)
        for path in _shards(folder):
            held = _some(path, "tokens", "prefixes", "batches")
            chosen.prefixes |= set(held["prefixes"].tolist())
            chosen.contexts.update(held["tokens"].tolist())
            chosen.entries += len(held["tokens"])
            chosen.batches = int(held["batches"])
        return chosen

    def new(self, layout: Layout) -> Iterator[tuple[int, int]]:
        """Positions of a row that become entries, with the hash of their prefix."""
        digest = hashlib.blake2b(digest_size=8)
        for count, position in enumerate(range(layout.start, len(layout))):
            token = layout.token_ids[position]
            digest.update(np.int64(token).tobytes())
            if count < self.skip or layout.kinds[position] != TEXT:
                continue
            if self.contexts[token] >= self.per_token:
                continue
            prefix = int.from_bytes(digest.digest(), "little", signed=True)
            if prefix not in self.prefixes:
                self.prefixes.add(prefix)
                self.contexts[token] += 1
                yield position, prefix


@torch.no_grad()
def _write_entries(
    vlm: HookedModel,
    texts: Sequence[str],
    names: Sequence[str],
    folder: Path,
    chosen: _Chosen,
    batch_size: int,
    dtype: torch.dtype,
    shard: int,
    progress: bool,
) -> None:
    """Runs the texts that are not done, a shard at a time."""
    todo = list(batches(vlm, list(texts), batch_size))
    held: dict[str, list[Any]] = {"values": [], "tokens": [], "prefixes": [], "places": []}
    waiting = 0

    def flush(done: int) -> None:
        nonlocal waiting
        if not waiting:
            return
        tensors = {
            "values": torch.cat(held["values"]),
            **{k: torch.tensor(held[k]) for k in ("tokens", "prefixes", "places")},
            "batches": torch.tensor(done),
        }
        write_tensors(folder / f"entries-{chosen.entries:010d}.safetensors", tensors)
        chosen.entries += waiting
        waiting = 0
        for kept in held.values():
            kept.clear()

    first = chosen.batches
    bar = tqdm(todo[first:], initial=first, total=len(todo), disable=not progress, unit="batch")
    for number, batch in enumerate(bar, start=first):
        prompt = vlm.as_prompt(batch.prompts)
        fresh = [(la, p, h) for la in prompt.layouts for p, h in chosen.new(la)]
        if fresh:
            _, cache = vlm.run_with_cache(prompt, names_filter=list(names), last_logits=1)
            rows, positions = [la.row for la, _, _ in fresh], [p for _, p, _ in fresh]
            states = torch.stack(together(cache[n][rows, positions] for n in names), dim=1)
            held["values"].append(unit(states).to("cpu", dtype))
            held["tokens"] += [la.token_ids[p] for la, p, _ in fresh]
            held["prefixes"] += [h for _, _, h in fresh]
            held["places"] += [(batch.rows[la.row], p - la.start) for la, p, _ in fresh]
            waiting += len(fresh)
        if waiting >= shard:
            flush(number + 1)
    flush(len(todo))


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise LensError("texts is a list of texts, such as in_contexts(['red', 'square']).")
    listed = list(texts)
    if not listed:
        raise LensError("A bank is built from at least one text.")
    pictures = [text for text in listed if IMAGE in text]
    if pictures:
        raise LensError(f"A bank is built from text; {pictures[0]!r:.60} has a picture.")
    return listed


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("entries-*.safetensors"))


def _some(path: Path, *names: str) -> dict[str, Tensor]:
    """Some tensors of a shard; the others stay on disk."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


__all__ = ["CONTEXTS", "Bank", "in_contexts"]
