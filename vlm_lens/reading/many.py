"""Reads one position of many prompts: in batches of like length, to memory or to a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from vlm_lens.distributed import opened
from vlm_lens.engine.picture_store import PictureStore
from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.interventions.base import Composed, OfRows, compose
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.storage.files import FileError, read_json, write_tensors
from vlm_lens.storage.folder import MANIFEST, RunFolder
from vlm_lens.tokens import IMAGE, tokenizer_of

_HOLDS = "readings"


@dataclass(frozen=True)
class Batch:
    """Prompts that run together.

    Attributes:
        rows: The number of each row in the result.
        prompts: The prompts, or one that was made already.
    """

    rows: tuple[int, ...]
    prompts: Any


@dataclass(frozen=True)
class Readings(Sequence):
    """What was read from many prompts, kept in a folder; each is loaded when it is asked for.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def __len__(self) -> int:
        return read_json(self.folder / MANIFEST)["rows"]

    def __getitem__(self, row: Any) -> Tensor:
        """One prompt's `[layers, ...]`, or a list of them for a slice."""
        if isinstance(row, slice):
            return torch.stack([self[i] for i in range(*row.indices(len(self)))])
        if not -len(self) <= row < len(self):
            raise IndexError(f"There are {len(self)} readings, not {row}.")
        path, place = self._places[row % len(self)]
        with _opened(path) as file:
            return file.get_slice("values")[place]

    def load(self) -> Tensor:
        """Everything, `[prompts, layers, ...]`."""
        rows: list[Tensor | None] = [None] * len(self)
        for numbers, values in self.shards():
            for number, value in zip(numbers, values, strict=True):
                rows[number] = value
        return torch.stack(rows)  # type: ignore[arg-type]

    def mean(self) -> Tensor:
        """The mean over prompts, `[layers, ...]`, one shard in memory at a time."""
        total = sum(values.double().sum(0) for _, values in self.shards())
        return (total / len(self)).to(self[0].dtype)

    def shards(self) -> Iterator[tuple[list[int], Tensor]]:
        """Prompt numbers and their values, file by file, in no particular order."""
        for path in _shards(self.folder):
            with _opened(path) as file:
                yield file.get_tensor("rows").tolist(), file.get_tensor("values")

    @cached_property
    def _places(self) -> dict[int, tuple[Path, int]]:
        return {
            number: (path, place)
            for path in _shards(self.folder)
            for place, number in enumerate(_rows_of(path))
        }


@overload
def read_each(
    vlm: HookedModel, prompts: Any, *, at: Any, save: None = None, **options: Any
) -> Tensor: ...


@overload
def read_each(
    vlm: HookedModel, prompts: Any, *, at: Any, save: str | Path, **options: Any
) -> Readings: ...


@torch.no_grad()
def read_each(
    vlm: HookedModel,
    prompts: Sequence[Any] | Any,
    *,
    at: Position | int,
    points: str = "blocks.*.hook_resid_post",
    batch_size: int = 16,
    interventions: Any = (),
    save: str | Path | None = None,
    on: Any = None,
) -> Tensor | Readings:
    """The activation at one position of each prompt, at every layer, `[prompts, layers, ...]`.

    Texts and RawPrompts run in left-padded batches of like length; the result has the order of the
    prompts. Prompts made already run as they are. A picture that several prompts show is computed
    once.

    Args:
        vlm: A HookedVLM.
        prompts: Texts, RawPrompts, Prompts or a processor's tensors; one or many.
        at: One position, the same for every prompt.
        points: Which point of each block.
        batch_size: How many prompts run together at the most.
        interventions: What to change while reading.
        save: A folder to which each batch is written as soon as it is read, so that memory does
            not grow with the number of prompts; a reading that was killed goes on from there.
        on: Where batches are read; see `HookedVLM.sweep`.

    Returns:
        A tensor on the CPU; with `save`, `Readings`.

    Raises:
        VectorError: No prompts, `at` means several positions, points of several kinds, or a folder
            that holds something else.
    """
    listed, at = as_list(prompts), as_position(at)
    if not listed:
        raise VectorError("A vector is read from at least one prompt.")
    table = vlm.architecture.points
    names = table.match(points)
    if len({table[n].kind for n in names}) > 1:
        raise VectorError(f"{points!r} matches several kinds of points; a vector holds one kind.")
    listed = made_or_raw(vlm, listed)
    n_rows = sum(len(p) if isinstance(p, Prompt) else 1 for p in listed)
    edits = compose(interventions)
    work = _Reading(tuple(names), at, edits, n_rows, logits_needed(names, edits))
    if save is None:
        rows: list[Tensor | None] = [None] * n_rows
        with opened(on, vlm) as workers:
            for numbers, values in workers.run(work, batches(vlm, listed, batch_size)):
                for number, value in zip(numbers, values, strict=True):
                    rows[number] = value
        return torch.stack(rows)  # type: ignore[arg-type]
    identity = run_identity(
        vlm, prompts=[content_of(p) for p in listed], points=names, position=at, interventions=edits
    )
    about = {"rows": n_rows, "points": names}
    with RunFolder(save, identity, holds=_HOLDS, about=about, error=VectorError) as folder:
        done = frozenset(row for path in _shards(folder.path) for row in _rows_of(path))
        if len(done) < n_rows:
            folder.must_be_writable()
            with opened(on, vlm) as workers:
                left = batches(vlm, listed, batch_size, done)
                for numbers, values in workers.run(work, left):
                    _write(folder.path, numbers, values)
    return Readings(folder.path)


@dataclass
class _Reading:
    """Reads batches; a picture that several of them show is computed once.

    Attributes:
        names: The points.
        at: The position.
        edits: What to change while reading.
        n_prompts: How many prompts there are in all.
        last_logits: At how many of the last positions logits are computed; at all if None.
    """

    names: tuple[str, ...]
    at: Position
    edits: Composed
    n_prompts: int
    last_logits: int | None
    _pictures: PictureStore | None = field(default=None, init=False, repr=False)

    def __call__(self, vlm: HookedModel, batch: Batch) -> Iterator[tuple[Sequence[int], Tensor]]:
        """The rows of a batch and their values, `[rows, layers, ...]`."""
        self._pictures = vlm._pictures or self._pictures or vlm.picture_store()
        with vlm.reusing_pictures(self._pictures):
            _, cache = vlm.run_with_cache(
                batch.prompts,
                names_filter=list(self.names), positions=self.at, device="cpu",
                interventions=[OfRows(e, batch.rows, self.n_prompts) for e in self.edits],
                last_logits=self.last_logits,
            )  # fmt: skip
        stacked = torch.stack([cache[n] for n in self.names], dim=1)  # [batch, layers, pos, ...]
        if stacked.shape[2] != 1:
            raise VectorError(
                f"{self.at} holds {stacked.shape[2]} positions; a vector is read at one: Last(), "
                "Find(':', -3), ..."
            )
        yield batch.rows, stacked[:, :, 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pictures": None}


def logits_needed(names: Sequence[str], edits: Sized = ()) -> int | None:
    """At how many of the last positions a reading needs logits: at one; `None` for at all.

    Of a large vocabulary, logits that nobody sees are what costs.

    Args:
        names: The points that are read.
        edits: What is changed meanwhile, perhaps at logits.
    """
    return None if len(edits) or "hook_logits" in names else 1


def made_or_raw(vlm: HookedModel, prompts: list[Any]) -> list[Any]:
    """Texts and RawPrompts as they are; where one is neither, all as Prompts."""
    if any(not isinstance(p, str) and not hasattr(p, "text") for p in prompts):
        return [vlm.as_prompt(p) for p in prompts]
    return prompts


def batches(
    vlm: HookedModel, prompts: list[Any], size: int, done: frozenset[int] = frozenset()
) -> Iterator[Batch]:
    """Prompts of like length together; none of those that are done.

    Args:
        vlm: The model that reads them.
        prompts: Texts and RawPrompts, or Prompts that were made already.
        size: How many run together at the most.
        done: Numbers of prompts that are left out.
    """
    if isinstance(prompts[0], Prompt):
        first = 0
        for prompt in prompts:
            rows = tuple(range(first, first + len(prompt)))
            first += len(prompt)
            if not done.issuperset(rows):
                yield Batch(rows, prompt)
        return
    lengths = _lengths(vlm, prompts)
    order = sorted(set(range(len(prompts))) - done, key=lambda i: (*lengths[i], i))
    chunk: list[int] = []
    for i in order:
        unlike = chunk and (
            lengths[i][0] != lengths[chunk[0]][0] or lengths[i][1] > 2 * lengths[chunk[0]][1] + 16
        )
        if len(chunk) == size or unlike:
            yield Batch(tuple(chunk), [prompts[j] for j in chunk])
            chunk = []
        chunk.append(i)
    if chunk:
        yield Batch(tuple(chunk), [prompts[j] for j in chunk])


def _lengths(vlm: HookedModel, prompts: Sequence[Any]) -> list[tuple[int, int]]:
    """How many pictures and how many tokens of text each prompt has; pictures stay untouched."""
    texts = [text_of(p) for p in prompts]
    if vlm.processor is None or len(texts) == 1:
        return [(0, 0)] * len(texts)
    tokens = tokenizer_of(vlm.processor)([t.replace(IMAGE, "") for t in texts])["input_ids"]
    return [(t.count(IMAGE), len(ids)) for t, ids in zip(texts, tokens, strict=True)]


def as_list(prompts: Any) -> list[Any]:
    """One prompt or several, as a list."""
    return list(prompts) if isinstance(prompts, list | tuple) else [prompts]


def text_of(prompt: Any) -> str:
    """The text of a prompt of any form, empty where there is none."""
    if isinstance(prompt, str):
        return prompt
    texts = getattr(prompt, "texts", None)
    return "\n".join(texts) if texts else str(getattr(prompt, "text", ""))


# ---------------------------------------------------------------------- the folder


def content_of(prompt: Any) -> Any:
    """What a prompt is read from: tensors and layouts, or text and pictures."""
    if isinstance(prompt, Prompt):
        return prompt.inputs, prompt.layouts
    return text_of(prompt), tuple(getattr(prompt, "images", ()))


def _write(folder: Path, rows: Sequence[int], values: Tensor) -> None:
    held = {"rows": torch.tensor(rows), "values": values}
    write_tensors(folder / f"rows-{min(rows):08d}.safetensors", held)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows-*.safetensors"))


def _rows_of(path: Path) -> list[int]:
    with _opened(path) as file:
        return file.get_tensor("rows").tolist()


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} is damaged ({error}): delete it, and its prompts are read again."
        ) from None
