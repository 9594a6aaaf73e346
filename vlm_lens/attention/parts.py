"""Which attention is meant: the language model's, the tower's, or that from text to a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integers
from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.layout import Layout
from vlm_lens.points.table import PointTable
from vlm_lens.scores.places import sequence

PARTS = ("language", "vision", "encoder", "cross")


class AttentionError(VLMLensError):
    """Attention asked of a part, a block or a head that the model does not have."""


@dataclass(frozen=True)
class Part:
    """The blocks of one kind of attention.

    Attributes:
        name: `"language"`, `"vision"`, `"encoder"` or `"cross"`.
        prefix: What its points' names start with.
        layers: Its blocks, 0-based.
        n_heads: Heads of a block.
        n_key_value_heads: Key and value heads of a block.
        queries: Whose positions its queries are: `"text"`, `"encoder"` or `"vision"`.
        keys: Whose positions its keys are: of these or, of a cross-attention, `"projector"`.
        attn: What attention is called within a block.
    """

    name: str
    prefix: str
    layers: tuple[int, ...]
    n_heads: int
    n_key_value_heads: int
    queries: str
    keys: str
    attn: str = "attn"

    def point(self, layer: int, name: str) -> str:
        """The full name of a point of a block."""
        own = f"{self.attn}.{rest}" if (rest := name.removeprefix("attn.")) != name else name
        return f"{self.prefix}blocks.{layer}.{own}"

    def chosen(self, layers: Iterable[int] | int | None) -> list[int]:
        """The blocks asked for; a negative one counts from the last.

        Raises:
            AttentionError: A block that this part does not have.
        """
        if layers is None:
            return list(self.layers)
        count = max(self.layers) + 1
        asked = as_integers(layers, "A block", AttentionError)
        found = [n + count if n < 0 else n for n in asked]
        lost = [a for a, n in zip(asked, found, strict=True) if n not in self.layers]
        if lost or not found:
            what = f"block {lost[0]}" if lost else "no block"
            raise AttentionError(
                f"{what} was asked; {self.name} attention of this model is in blocks "
                f"{_spans(self.layers)}."
            )
        return found

    def chosen_heads(self, heads: Iterable[int] | int | None) -> list[int]:
        """The heads asked for; a negative one counts from the last.

        Raises:
            AttentionError: A head that there is not.
        """
        if heads is None:
            return list(range(self.n_heads))
        asked = as_integers(heads, "A head", AttentionError)
        found = [h + self.n_heads if h < 0 else h for h in asked]
        lost = [a for a, h in zip(asked, found, strict=True) if not 0 <= h < self.n_heads]
        if lost or not found:
            what = f"head {lost[0]}" if lost else "no head"
            raise AttentionError(
                f"{what} was asked; {self.name} attention has heads 0..{self.n_heads - 1}."
            )
        return found

    def keys_of(self, layout: Layout, row: int, n_keys: int) -> list[tuple[int, int]]:
        """(row, position) of the keys of one row of the activations; positions are key numbers.

        Keys that are nothing of the prompt's are left out: padding, what fills up a picture of
        fewer tiles, and pictures of other prompts in a tower that packs all into one sequence.

        Args:
            layout: The prompt's.
            row: The activation's row: the prompt's, or a picture's in the tower.
            n_keys: How many keys the pattern has.

        Raises:
            AttentionError: The pattern has other keys than the layout knows of.
        """
        keys = [pair for pair in sequence(layout, self.keys) if pair[0] == row]
        if not keys or max(p for _, p in keys) >= n_keys:
            raise AttentionError(
                f"A pattern of {self.name} attention has {n_keys} keys, and the layout of this "
                f"prompt {len(keys)} positions there: other things than the prompt are attended to."
            )
        layout, space = layout.counted(self.keys)
        if space != "text":
            return keys
        return [(row, p) for row, p in keys if layout.kinds[p] != PAD]


def part_of(vlm: HookedModel, name: str) -> Part:
    """The part of a model that a name means.

    Raises:
        AttentionError: Another name, or the model lacks it (with its reason).
    """
    if name not in PARTS:
        raise AttentionError(f"part is one of {', '.join(PARTS)}, not {name!r}.")
    points = vlm.architecture.points
    prefix = {"vision": "vision.", "encoder": "encoder."}.get(name, "")
    crosses = name == "cross"
    attn = "cross_attn" if crosses and vlm.architecture.encoder is not None else "attn"
    size = vlm.cfg.vision if name == "vision" else vlm.cfg
    if size is None:
        raise AttentionError("This model has no vision tower with points, so no attention in it.")
    if name == "encoder" and vlm.architecture.encoder is None:
        raise AttentionError("This model has no encoder beside its decoder.")
    layers, why = [], ""
    for layer in range(_n_blocks(points, prefix) or size.n_layers):
        pattern = f"{prefix}blocks.{layer}.{attn}.hook_pattern"
        if pattern not in points:
            why = why or _why_not(points, pattern)
        elif bool(points[pattern].keys) == crosses:
            layers.append(layer)
    if not layers:
        raise AttentionError(
            why
            or "This model has no blocks of cross-attention: its pictures stand in the text, where "
            "part='language' reads attention to them."
        )
    first = points[f"{prefix}blocks.{layers[0]}.{attn}.hook_pattern"]
    n_heads = first.sizes[1] or size.n_heads
    keys = f"{prefix}blocks.{layers[0]}.{attn}.hook_k"
    n_keys = (points[keys].sizes[2] if keys in points else None) or n_heads
    return Part(
        name, prefix, tuple(layers), n_heads, n_keys, first.space, first.keys or first.space, attn
    )


def _n_blocks(points: PointTable, prefix: str) -> int:
    mine = [p.layer for n, p in points.items() if n.startswith(f"{prefix}blocks.")]
    return 1 + max((layer for layer in mine if layer is not None), default=-1)


def _why_not(points, name: str) -> str:
    try:
        points[name]
    except VLMLensError as error:
        return str(error)
    return ""


def _spans(layers: Sequence[int]) -> str:
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}..{layers[-1]}"
    return ", ".join(map(str, layers))
