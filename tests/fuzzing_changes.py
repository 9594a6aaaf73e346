"""Random changes of a run, each as the package has it and as plain hooks make it in each row."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tiny
import torch
from plain_edits import PlainEdit, maskable, plain_read
from torch import Tensor

from vlm_lens import (
    Ablate,
    ActivationPatch,
    AttentionEdit,
    AttentionKnockout,
    Clamp,
    Find,
    Generated,
    HookedVLM,
    Images,
    Last,
    Mean,
    Patches,
    Project,
    RawPrompt,
    Remove,
    Resample,
    Scale,
    Steer,
    TaskVector,
    Text,
)
from vlm_lens.interventions import Intervention
from vlm_lens.layout.positions import All, At, Position
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt

OTHER = "Q:France\nA:Paris Q:Oslo\nA:"  # where values from caches and vectors are read
KINDS = (
    "set", "add", "zero", "mean", "number", "each position", "all heads", "cache", "vector",
    "scale", "scale each", "clamp", "remove", "project", "dataset mean",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One change as the package has it, and as plain hooks make it in each row alone.

    Attributes:
        intervention: What is given to a run.
        plain: The same in a row, and at the new tokens of it if it lasts.
        lasting: What is given to a generation, where it acts at every new token, too.
    """

    intervention: Intervention
    plain: Callable[[int], list[PlainEdit]]
    lasting: Intervention | None = None

    @property
    def in_generation(self) -> Intervention:
        """What is given to a generation."""
        return self.lasting or self.intervention

    @property
    def point(self) -> Point:
        """The first point that is changed."""
        return self.plain(0)[0].point

    @property
    def title(self) -> str:
        """What kind it is."""
        lasting = " + Generated()" if self.lasting else ""
        return type(self.intervention).__name__ + lasting

    @property
    def is_of_pattern(self) -> bool:
        """Whether it changes an attention pattern."""
        return self.point.on_demand and self.plain(0)[0].kind != "block"


@dataclass
class Spot:
    """Where a change is made.

    Attributes:
        point: The point.
        at: The position, as the package names it.
        cells: For each row alone, the (row, position) pairs of it.
        heads: The heads; all if `None`.
        since: For each row alone, from which position on everything is changed, too: the first new
            token, where a generation goes on with the change.
    """

    point: Point
    at: Position
    cells: list[list[tuple[int, int]]]
    heads: list[int] | None = None
    since: list[int | None] = field(default_factory=list)

    def __post_init__(self):
        self.since = [None] * len(self.cells)

    @property
    def equal(self) -> bool:
        """Whether every row has as many cells."""
        return len({len(mine) for mine in self.cells}) == 1

    @property
    def n_heads(self) -> int:
        """How many heads the point has; 0 where it has no axis of them."""
        return self.point.sizes[self.point.axes.index("head")] if self.point.has_heads else 0

    def plain(self, kind: str, values: Callable[[int, int], Tensor], **more: Any) -> Callable:
        """The change as plain hooks make it; `values(row, cell)` is what a cell takes."""

        def of_row(row: int) -> list[PlainEdit]:
            mine = [values(row, i) for i in range(len(self.cells[row]))]
            return [PlainEdit(self.point, self.cells[row], kind, mine, heads=self.heads,
                              since=self.since[row], **more)]  # fmt: skip

        return of_row


class Changes:
    """Random changes that fit one prompt.

    Args:
        vlm: The model.
        text_only: Whether it runs without pictures.
        source: Of what is drawn.
        rows: Each row of the prompt, alone.
        grows: Whether changes may act at new tokens, too.
    """

    def __init__(
        self,
        vlm: HookedVLM,
        text_only: bool,
        source: random.Random,
        rows: Sequence[Prompt],
        grows: bool,
    ):
        self.vlm, self.text_only, self.source = vlm, text_only, source
        self.rows, self.grows = rows, grows
        self.pictured = all(row.layout.images for row in rows)
        self.crossing = rows[0].layout.encoder is not None

    def variant(self) -> list[Change]:
        """One to three changes of one run."""
        changes = [self._change() for _ in range(self.source.choice((1, 1, 2, 3)))]
        # a pattern is changed as z is, and first: no other change may come between
        if len(changes) > 1 and any(c.is_of_pattern for c in changes):
            return changes[:1]
        return changes

    def _change(self) -> Change:
        points = [
            p for p in self.vlm.points().values()
            if p.writable and (self.pictured or self._needs_no_picture(p))
            and p.name.replace("hook_pattern", "hook_z") in self.vlm.points()
            and (p.on_demand or p.sizes[-1])
        ]  # fmt: skip
        point = self.source.choice(points)
        if self.source.random() < 0.3 and any(p.space != "text" for p in points):
            point = self.source.choice([p for p in points if p.space != "text"])
        elif self.source.random() < 0.1:
            point = self.source.choice([p for p in points if p.name.endswith("attn_scores")])
        if point.name.endswith("hook_attn_scores"):
            cut = self._knockout(point)
            if cut:
                return cut
            point = self.source.choice([p for p in points if not p.on_demand])
        spot = self._spot(point)
        if point.has_heads and self.source.random() < 0.5:
            n_chosen = self.source.choice((1, min(2, spot.n_heads)))
            spot.heads = sorted(self.source.sample(range(spot.n_heads), n_chosen))
        kind = self.source.choice(("zero", "scale") if point.on_demand else KINDS)
        change = self._made(spot, kind)
        alike = kind not in ("mean", "each position", "cache")  # for all tokens
        return self._lasting(change, spot, "at") if alike else change

    def _lasting(self, change: Change, spot: Spot, name: str) -> Change:
        """In some groups, the change at every new token as well."""
        fits = self._needs_no_picture(spot.point) and spot.point.name != "hook_logits"
        if not (self.grows and fits and self.source.random() < 0.5):
            return change
        spot.since = [row.length for row in self.rows]
        lasting = replace(change.intervention, **{name: spot.at + Generated()})
        return replace(change, lasting=lasting)

    def _needs_no_picture(self, point: Point) -> bool:
        return point.space == "text" and not point.needs_pictures

    def _spot(self, point: Point) -> Spot:
        at = self._position(point.space)
        return Spot(point, at, [at.resolve(row.layout, point.space) for row in self.rows])

    def _position(self, counted: str) -> Position:
        if counted not in ("text", "encoder"):
            number = self.source.randrange(min(len(row.layout.image) for row in self.rows))
            places: list[Position] = [Images(), Images(number)]
            spaces = [row.layout.image[number].space(counted) for row in self.rows]
            if all(space.grids for space in spaces):
                places += [Patches(number, rows=0), Patches(number, rows=0, cols=0)]
            if all(space.sequences for space in spaces):
                places.append(At((0,)))
            return self.source.choice(places)
        layouts = [row.layout.counted(counted)[0] for row in self.rows]
        shortest = min(len(layout) for layout in layouts)
        places = [Last(), Text(), All()]
        if counted == "text" or len(layouts) == 1:  # tensors of a batch are counted as given
            places += [At((-1, -2)), At((-self.source.randint(1, shortest),))]
        # not in what stands for pictures, such as Chameleon's <racm3:break>
        texts = [zip(layout.strings, layout.kinds, strict=True) for layout in layouts]
        if all(any(":" in s and kind == "text" for s, kind in text) for text in texts):
            places.append(Find(":", -1))
        if self.pictured and (counted == "encoder" or not self.crossing):
            places.append(Images(0))
            grids = [layout.image[0].grid for layout in layouts]
            if all(grid is not None for grid in grids):
                last = [min(getattr(g, n) for g in grids) - 1 for n in ("rows", "cols")]
                places += [Patches(0, rows=(0, 1)), Patches(0, rows=last[0], cols=last[1])]
        return self.source.choice(places)

    def _random(self, *shape: int) -> Tensor:
        seed = torch.Generator().manual_seed(self.source.randrange(10**6))
        return torch.randn(shape, generator=seed)

    # ------------------------------------------------------------------ kinds

    def _made(self, spot: Spot, kind: str) -> Change:
        """A change of a kind; of one that does not fit there, a vector is written."""
        point, at, heads, plain = spot.point, spot.at, spot.heads, spot.plain
        width, name, n_heads = point.sizes[-1], point.name, spot.n_heads
        shape = (len(heads or range(n_heads)), width) if n_heads else (width,)
        if kind == "zero":
            zeros = plain("set", lambda r, i: torch.zeros(()))
            return Change(Ablate(name, at, "zero", heads=heads), zeros)
        if kind == "mean":
            by = self._mean(spot)
            return Change(
                Ablate(name, at, by, heads=heads),
                lambda row: [PlainEdit(point, spot.cells[row], "mean", heads=heads,
                                       pools=self._pools(spot, by, row))],
            )  # fmt: skip
        if kind == "dataset mean":
            return self._dataset_mean(spot)
        if kind == "number":
            number = self.source.choice((0.5, -2.0))
            written = plain("set", lambda r, i: torch.tensor(number))
            return Change(ActivationPatch(name, at, number, heads=heads), written)
        if kind == "scale":
            factor = self.source.choice((0.5, -1.0, 2.0))
            scaled = plain("scale", lambda r, i: torch.tensor(factor))
            return Change(Scale(name, at, factor, heads=heads), scaled)
        if kind == "scale each":
            factors = self._random(*shape)
            return Change(Scale(name, at, factors, heads=heads),
                          plain("scale", lambda r, i: factors))  # fmt: skip
        if kind == "clamp":
            low, high = self.source.choice(((-0.5, None), (None, 0.25), (-0.1, 0.4)))
            limits = torch.tensor([-1e30 if low is None else low, 1e30 if high is None else high])
            return Change(Clamp(name, at, low, high, heads=heads),
                          plain("clamp", lambda r, i: limits))  # fmt: skip
        if kind in ("remove", "project"):
            directions = self._random(self.source.choice((1, min(2, width))), width)
            made = {"remove": Remove, "project": Project}[kind]
            given = directions[0] if len(directions) == 1 else directions
            return Change(made(name, at, given, heads=heads), plain(kind, lambda r, i: directions))
        if kind == "each position" and spot.equal:
            value = self._random(len(spot.cells[0]), *shape)
            # of a head axis and one head, a value of two axes could mean either: it has three
            return Change(
                ActivationPatch(name, at, value, heads=heads), plain("set", lambda r, i: value[i])
            )
        if kind == "all heads" and n_heads:
            value = self._random(n_heads, width)
            chosen = value if heads is None else value[heads]
            added = plain("add", lambda r, i: -1.5 * chosen)
            return Change(Steer(name, at, value, -1.5, heads=heads), added)
        read_alike = isinstance(at, Last | At) and spot.equal and not self.crossing
        if kind == "cache" and point.space == "text" and read_alike:
            return self._from_cache(spot)
        if kind == "vector" and name.endswith("hook_resid_post") and point.space == "text":
            return self._from_vector(spot)
        value = self._random(width)
        if kind == "add":
            scale = self.source.choice((0.5, -1.0, 3.0))
            added = plain("add", lambda r, i: scale * value)
            return Change(Steer(name, at, value, scale, heads=heads), added)
        written = plain("set", lambda r, i: value)
        return Change(ActivationPatch(name, at, value, heads=heads), written)

    def _mean(self, spot: Spot) -> str:
        if spot.point.space not in ("text", "encoder"):
            return "picture_mean"
        pictures = [
            {p for im in self._pictures(row, spot.point.space) for p in im.positions}
            for row in self.rows
        ]
        inside = all(p in pictures[r] for r, mine in enumerate(spot.cells) for _, p in mine)
        return self.source.choice(("prompt_mean", "picture_mean") if inside else ("prompt_mean",))

    def _pictures(self, row: Prompt, counted: str) -> Sequence[Any]:
        """The pictures that stand in a sequence: a decoder beside an encoder has none."""
        if counted == "text" and self.crossing:
            return ()
        return row.layout.counted(counted)[0].images

    def _pools(self, spot: Spot, by: str, row: int) -> list[list]:
        prompt, cells = self.rows[row], spot.cells[row]
        if by == "prompt_mean":
            length = len(prompt.layout.counted(spot.point.space)[0])
            return [[(0, p) for p in range(length)]] * len(cells)
        space = prompt.layout.counted(spot.point.space)[1]
        pictures = [
            [(r, p) for r, positions in im.space(space).sequences for p in positions]
            for im in self._pictures(prompt, spot.point.space)
        ]
        return [next(pool for pool in pictures if cell in pool) for cell in cells]

    def _dataset_mean(self, spot: Spot) -> Change:
        """The mean over the prompt's own rows, and over a prompt of another length."""
        point, prompts = spot.point, list(self.rows)
        if self._needs_no_picture(point):
            prompts.append(self._other(1))
        where = Last() if point.space == "text" and self.source.random() < 0.5 else All()
        read = []
        for prompt in prompts:
            shown = plain_read(self.vlm.hf_model, dict(prompt.inputs), point)
            read += [shown[r, p].double() for r, p in where.resolve(prompt.layout, point.space)]
        mean = torch.stack(read).mean(0).float()
        chosen = mean if spot.heads is None else mean[spot.heads]
        value = Mean.of(self.vlm, prompts, point.name, at=where)
        return Change(
            Ablate(point.name, spot.at, value, heads=spot.heads),
            spot.plain("set", lambda r, i: chosen),
        )

    def _other(self, times: int | None = None) -> Prompt:
        """Another prompt to read values from, as long as the longest row at the least."""
        shown = int(not self.text_only)
        longest = max(row.length for row in self.rows)
        text = "<image>\n" * shown + OTHER * (times or 1 + longest // 8)
        return self.vlm.prompt([text], [[tiny.noise_picture(3, (40, 36))]] if shown else None)

    def _from_cache(self, spot: Spot) -> Change:
        point, heads, other = spot.point, spot.heads, self._other()
        if point.needs_pictures or point.name == "hook_logits":
            return self._made(spot, "set")
        many = len(self.rows)
        same = self.vlm.prompt(
            [other.texts[0]] * many, [list(other.images[0])] * many if other.images else None
        )
        _, values = self.vlm.run_with_cache(same, names_filter=point.name)
        read = plain_read(self.vlm.hf_model, dict(other.inputs), point)
        taken = [read[0, p] for _, p in spot.at.resolve(other.layout)]
        taken = [t if heads is None else t[heads] for t in taken]
        plain = spot.plain("set", lambda r, i: taken[i])
        if spot.equal and self.source.random() < 0.4:
            drawn = Resample(point.name, spot.at, values, heads, seed=self.source.randrange(9))
            return Change(drawn, plain)
        return Change(ActivationPatch(point.name, spot.at, values, heads=heads), plain)

    def _from_vector(self, spot: Spot) -> Change:
        other = self._other()
        raw = RawPrompt(other.texts[0], other.images[0] if other.images else ())
        vector = TaskVector.read(self.vlm, [raw], at=Last())
        read = plain_read(self.vlm.hf_model, dict(other.inputs), spot.point)[0, -1]
        return Change(
            Steer(spot.point.name, spot.at, vector, 2.0),
            spot.plain("add", lambda r, i: 2.0 * read.float()),
        )

    # ------------------------------------------------------------------ knockouts

    def _knockout(self, point: Point) -> Change | None:
        """Keys hidden from queries or seen otherwise, in one block or all; `None` if it is nothing.

        Blocks of cross-attention go on seeing the class tokens of a picture.
        """
        parts = {"text": "language", "vision": "vision", "encoder": "encoder"}
        if point.space not in parts:
            return None
        part = parts[point.space]
        spot = self._spot(point)
        keys = self._position(point.space) - spot.at  # a query goes on seeing itself
        space = point.space
        if point.pictures_only:
            part, keys, space = "cross", Patches(0, rows=0), "projector"
        elif point.keys:
            part, keys, space = "cross", self._position(point.keys), point.keys
        hidden = [keys.resolve(row.layout, space) for row in self.rows]
        if space == "encoder" and any(
            len(set(theirs)) == len(row.layout.encoder)
            for theirs, row in zip(hidden, self.rows, strict=True)
        ):
            return None  # of attention to nothing there is no one reading
        cut = (
            [True] * len(hidden)
            if part == "cross"
            else [
                any(key[0] == query[0] and key < query for key in theirs for query in mine)
                for theirs, mine in zip(hidden, spot.cells, strict=True)
            ]
        )
        n_heads = spot.n_heads
        heads = None
        if self.source.random() < 0.5:
            heads = sorted(self.source.sample(range(n_heads), self.source.choice((1, 2))))
        prefix = point.name.split("blocks.")[0]
        same = [
            p for p in self.vlm.points().values()
            if p.name.endswith("hook_attn_scores") and p.name.split("blocks.")[0] == prefix
            and p.writable and p.pictures_only == point.pictures_only and p.keys == point.keys
        ]  # fmt: skip
        inside = ("", "vision.", "encoder.")
        chosen = [point] if self.source.random() < 0.5 or prefix not in inside else same
        maskable_here = all(maskable(self.vlm.hf_model, p) for p in chosen)
        if not (all(cut) and maskable_here and prefix in inside):
            return None

        def plain(row: int) -> list[PlainEdit]:
            return [
                PlainEdit(p, spot.cells[row], "block", heads=heads, keys=hidden[row],
                          since=spot.since[row], values=added)
                for p in chosen
            ]  # fmt: skip

        layers = None if chosen is same else (point.layer,)
        scale = self.source.choice((None, 0.2, 4.0))
        added = [] if scale is None else [torch.tensor(scale).log()]
        made: Intervention = AttentionKnockout(spot.at, keys, layers, heads, part)
        if scale is not None:
            made = AttentionEdit(spot.at, keys, scale=scale, layers=layers, heads=heads, part=part)
        change = Change(made, plain)
        return self._lasting(change, spot, "queries")
