"""Random cases for comparing runs, sweeps and generations with plain transformers and torch hooks.

A group is one prompt of one or two rows on a tiny model of one family, with variants of one to
three changes of every kind. Each variant is a case: its run is compared with `plain_edits` at every
position of every row, its replay at the last one, and in some groups its generated tokens and the
activations that are captured.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import tiny
import torch
from families.every import LMS, VLMS
from plain_edits import (
    PlainEdit,
    expressible,
    plain_greedy,
    plain_read,
    plain_run,
    with_patterns_as_z,
)
from torch import Tensor

from vlm_lens import (
    Ablate,
    ActivationPatch,
    Find,
    HookedVLM,
    Images,
    Last,
    Patches,
    RawPrompt,
    Steer,
    TaskVector,
    Text,
)
from vlm_lens.interventions import Intervention
from vlm_lens.layout.positions import All, At, Position
from vlm_lens.measures import Capture, GeneratedTokens
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt

TEXTS = ("Q:Greece\nA:", "What is the capital of the country?", "Q:Peru\nA:Lima\n\nQ:Japan\nA:")
OTHER = "Q:France\nA:Paris Q:Oslo\nA:"  # where values from caches and vectors are read
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How far two computations may lie apart, of the scale of the logits; and how clear a token must be.
WITHIN = {"float32": 1e-4, "bfloat16": 0.1}
PER_GROUP = 4
MODELS = {**VLMS, **LMS}


@dataclass
class Outcome:
    """What a group gave.

    Attributes:
        cases: How many variants were compared.
        failures: What was wrong, in words.
        worst: The largest difference, of the scale of the logits.
        engines: How many variants each engine computed.
        notes: What was left out, and why.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    worst: float = 0.0
    engines: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """One change as the package has it, and as plain hooks make it in each row alone."""

    intervention: Intervention
    plain: Callable[[int], PlainEdit]


@cache
def model_of(name: str, dtype: str) -> HookedVLM:
    """A tiny model, saved and loaded as a user's is."""
    folder, made = Path(mkdtemp(prefix="fuzz-")), MODELS[name]
    getattr(import_module(made.module), made.save)(folder=folder, **made.options)
    return HookedVLM.from_pretrained(folder, dtype=DTYPES[dtype])


def run_group(number: int, seed: int = 0) -> tuple[str, Outcome]:
    """Runs one group; a number and a seed always mean the same group.

    Returns:
        What the group is, and what it gave.
    """
    source = random.Random(f"{seed} {number}")
    name = list(MODELS)[number % len(MODELS)]
    dtype = "bfloat16" if number // len(MODELS) % 4 == 3 else "float32"
    title, outcome = f"group {number}: {name}, {dtype}", Outcome()
    try:
        Group(name, dtype, source, outcome).run()
    except Exception:  # noqa: BLE001  reported with the group that it is of
        outcome.failures.append(traceback.format_exc(limit=-6))
    return title, outcome


class Group:
    """One prompt and some variants of it."""

    def __init__(self, name: str, dtype: str, source: random.Random, outcome: Outcome):
        self.vlm, self.made = model_of(name, dtype), MODELS[name]
        self.dtype, self.source, self.outcome = dtype, source, outcome
        self.pictured = self.vlm.family.takes_images
        self.texts, self.images = self._drawn()
        self.prompt = self._prompt(self.texts, self.images)
        # each row alone: its tensors, and where things stand in it
        self.rows = [self._prompt([t], [i]) for t, i in zip(self.texts, self.images, strict=True)]
        if len(self.rows) > 1 and not (self.made.rows_alone and self._batches_alike()):
            self.texts, self.images = self.texts[:1], self.images[:1]
            self.prompt, self.rows = self.rows[0], self.rows[:1]
            outcome.notes.append("rows differ in a batch of transformers itself: one row")

    def _batches_alike(self) -> bool:
        """Whether transformers gives the rows together the logits that it gives each alone."""
        model = self.vlm.hf_model
        with torch.no_grad():
            together = model(**self.prompt.inputs, use_cache=False).logits
        alone = [plain_run(model, dict(row.inputs), ()) for row in self.rows]
        return all(
            self._error(together[r, -len(mine) :], mine) <= WITHIN[self.dtype] / 2
            for r, mine in enumerate(alone)
        )

    def _drawn(self) -> tuple[list[str], list[list]]:
        least = int(not self.made.text_only or self.source.random() < 0.5)
        texts, images = [], []
        for _ in range(self.source.choice((1, 2))):
            n = max(self.source.choice((0, 1, 1, 2)), least) if self.pictured else 0
            texts.append("<image>\n" * n + self.source.choice(TEXTS))
            images.append(
                [tiny.noise_picture(self.source.randrange(50), (40, 36)) for _ in range(n)]
            )
        return texts, images

    def _prompt(self, texts: list[str], images: list[list]) -> Prompt:
        return self.vlm.prompt(texts, images if any(images) else None)

    def run(self) -> None:
        """Compares every variant."""
        variants = [self._variant() for _ in range(PER_GROUP)]
        interventions = [sum_of([c.intervention for c in changes]) for changes in variants]
        expected = [
            [plain_run(self.vlm.hf_model, dict(row.inputs), edits) for row, edits in self._rows(v)]
            for v in variants
        ]
        for changes, made, rows in zip(variants, interventions, expected, strict=True):
            self.outcome.cases += 1
            logits = self.vlm.run(self.prompt, interventions=made)
            for row, plain in enumerate(rows):
                mine = logits[row, -len(plain) :]
                self._same(mine, plain, f"run, row {row}", changes)
        swept = self.vlm.sweep(
            self.prompt, interventions, measure="logits", progress=False,
            memory=self.source.choice((1, 10**6, None)),
        )  # fmt: skip
        self.outcome.engines = dict(swept.engines)
        found = swept.stack("logits").unflatten(0, (len(variants), -1))
        for v, changes in enumerate(variants):
            for row, plain in enumerate(expected[v]):
                self._same(found[v, row], plain[-1:], f"sweep, row {row}", changes)
        also = self.source.random()
        if also < 0.15:
            self._check_generation(variants, interventions)
        elif also < 0.3:
            self._check_capture(variants, interventions)

    def _rows(self, changes: Sequence[Change]) -> Iterator[tuple[Prompt, list[PlainEdit]]]:
        points = self.vlm.architecture.points
        for number, row in enumerate(self.rows):
            yield row, with_patterns_as_z([c.plain(number) for c in changes], points)

    # ------------------------------------------------------------------ changes

    def _variant(self) -> list[Change]:
        changes = [self._change() for _ in range(self.source.choice((1, 1, 2, 3)))]
        patterns = {c.plain(0).point.name for c in changes if c.plain(0).point.on_demand}
        # zeros of a pattern are made as zeros of z, which come first: no other change may between
        if patterns and len(changes) > 1:
            return changes[:1]
        return changes

    def _change(self) -> Change:
        every = all(self.images)
        points = [
            p for p in self.vlm.points().values()
            if p.writable and expressible(p) and (every or self._needs_no_picture(p))
        ]  # fmt: skip
        point = self.source.choice(points)
        if self.source.random() < 0.3 and any(p.space != "text" for p in points):
            point = self.source.choice([p for p in points if p.space != "text"])
        at = self._position(point)
        heads = None
        if point.has_heads and self.source.random() < 0.5:
            n_heads = point.sizes[point.axes.index("head")]
            n_chosen = self.source.choice((1, min(2, n_heads)))
            heads = sorted(self.source.sample(range(n_heads), n_chosen))
        if point.on_demand:
            return self._made(point, at, heads, "zero")
        kinds = ["set", "add", "zero", "mean", "number", "each position", "all heads", "cache"]
        return self._made(point, at, heads, self.source.choice([*kinds, "vector"]))

    def _needs_no_picture(self, point: Point) -> bool:
        return point.space == "text" and not point.needs_pictures

    def _position(self, point: Point) -> Position:
        every = all(self.images)
        if point.space != "text":
            number = self.source.randrange(min(map(len, self.images)))
            places: list[Position] = [Images(), Images(number)]
            spaces = [row.layout.image[number].space(point.space) for row in self.rows]
            if all(space.grids for space in spaces):
                places += [Patches(number, rows=0), Patches(number, rows=0, cols=0)]
            if all(space.sequences for space in spaces):
                places.append(At((0,)))
            return self.source.choice(places)
        shortest = min(row.length for row in self.rows)
        places = [Last(), Text(), All(), At((-1, -2)), At((-self.source.randint(1, shortest),))]
        if all(":" in text for text in self.texts):
            places.append(Find(":", -1))
        if every:
            places.append(Images(0))
            grids = [row.layout.image[0].grid for row in self.rows]
            if all(grid is not None for grid in grids):
                last = [min(getattr(g, n) for g in grids) - 1 for n in ("rows", "cols")]
                places += [Patches(0, rows=(0, 1)), Patches(0, rows=last[0], cols=last[1])]
        return self.source.choice(places)

    def _made(self, point: Point, at: Position, heads: list[int] | None, kind: str) -> Change:
        """A change of a kind; of one that does not fit there, a vector is written."""
        cells = [at.resolve(row.layout, point.space) for row in self.rows]
        width, name = point.sizes[-1], point.name
        n_heads = point.sizes[point.axes.index("head")] if point.has_heads else 0
        shape = (len(heads or range(n_heads)), width) if n_heads else (width,)

        def plain(kind: str, values: Callable[[int, int], Tensor], **more: Any) -> Callable:
            def of_row(row: int) -> PlainEdit:
                mine = [values(row, i) for i in range(len(cells[row]))]
                return PlainEdit(point, cells[row], kind, mine, heads=heads, **more)

            return of_row

        if kind == "zero":
            zeros = plain("set", lambda r, i: torch.zeros(()))
            return Change(Ablate(name, at, "zero", heads=heads), zeros)
        if kind == "mean":
            by = self._mean(point, cells)
            if by:
                return Change(
                    Ablate(name, at, by, heads=heads),
                    lambda row: PlainEdit(
                        point, cells[row], "mean", pools=self._pools(point, by, row, cells[row]),
                        heads=heads,
                    ),
                )  # fmt: skip
        if kind == "number":
            number = self.source.choice((0.5, -2.0))
            return Change(
                ActivationPatch(name, at, number, heads=heads),
                plain("set", lambda r, i: torch.tensor(number)),
            )
        equal = len({len(mine) for mine in cells}) == 1
        if kind == "each position" and equal:
            value = self._random(len(cells[0]), *shape)
            # of a head axis and one head, a value of two axes could mean either: it has three
            return Change(
                ActivationPatch(name, at, value, heads=heads), plain("set", lambda r, i: value[i])
            )
        if kind == "all heads" and point.has_heads:
            value = self._random(n_heads, width)
            chosen = value if heads is None else value[heads]
            if not (heads and equal and len(cells[0]) == n_heads):  # that would be ambiguous
                added = plain("add", lambda r, i: -1.5 * chosen)
                return Change(Steer(name, at, value, -1.5, heads=heads), added)
        if kind == "cache" and point.space == "text" and isinstance(at, Last | At) and equal:
            return self._from_cache(point, at, heads, plain)
        if kind == "vector" and name.endswith("hook_resid_post") and point.space == "text":
            return self._from_vector(point, at, plain)
        value = self._random(width)
        if kind == "add":
            scale = self.source.choice((0.5, -1.0, 3.0))
            return Change(
                Steer(name, at, value, scale, heads=heads), plain("add", lambda r, i: scale * value)
            )
        return Change(
            ActivationPatch(name, at, value, heads=heads), plain("set", lambda r, i: value)
        )

    def _random(self, *shape: int) -> Tensor:
        seed = torch.Generator().manual_seed(self.source.randrange(10**6))
        return torch.randn(shape, generator=seed)

    def _mean(self, point: Point, cells: Sequence[Sequence]) -> str:
        if point.space != "text":
            return "picture_mean"
        pictures = [{p for im in row.layout.images for p in im.positions} for row in self.rows]
        inside = all(p in pictures[r] for r, mine in enumerate(cells) for _, p in mine)
        return self.source.choice(("prompt_mean", "picture_mean") if inside else ("prompt_mean",))

    def _pools(self, point: Point, by: str, row: int, cells: Sequence) -> list[list]:
        prompt = self.rows[row]
        if by == "prompt_mean":
            return [[(0, p) for p in range(prompt.length)]] * len(cells)
        pictures = [
            [(r, p) for r, positions in im.space(point.space).sequences for p in positions]
            for im in prompt.layout.images
        ]
        return [next(pool for pool in pictures if cell in pool) for cell in cells]

    def _other(self) -> Prompt:
        """Another prompt to read values from, as long as the shortest row at the least."""
        shown = int(not self.made.text_only)
        longest = max(row.length for row in self.rows)
        text = "<image>\n" * shown + OTHER * (1 + longest // 8)
        return self._prompt([text], [[tiny.noise_picture(3, (40, 36))] * shown])

    def _from_cache(
        self, point: Point, at: Position, heads: list[int] | None, plain: Callable
    ) -> Change:
        other = self._other()
        if point.needs_pictures or point.name == "hook_logits":
            return self._made(point, at, heads, "set")
        same = self._prompt(
            [other.texts[0]] * len(self.rows),
            [list(other.images[0]) if other.images else []] * len(self.rows),
        )
        _, values = self.vlm.run_with_cache(same, names_filter=point.name)
        read = plain_read(self.vlm.hf_model, dict(other.inputs), point)
        taken = [read[0, p] for _, p in at.resolve(other.layout)]
        taken = [t if heads is None else t[heads] for t in taken]
        written = plain("set", lambda r, i: taken[i])
        return Change(ActivationPatch(point.name, at, values, heads=heads), written)

    def _from_vector(self, point: Point, at: Position, plain: Callable) -> Change:
        other = self._other()
        raw = RawPrompt(other.texts[0], other.images[0] if other.images else ())
        vector = TaskVector.read(self.vlm, [raw], at=Last())
        read = plain_read(self.vlm.hf_model, dict(other.inputs), point)[0, -1]
        return Change(
            Steer(point.name, at, vector, 2.0), plain("add", lambda r, i: 2.0 * read.float())
        )

    # ------------------------------------------------------------------ comparisons

    def _same(self, found: Tensor, plain: Tensor, what: str, changes: Sequence[Change]) -> None:
        error = self._error(found, plain)
        self.outcome.worst = max(self.outcome.worst, error)
        if not error <= WITHIN[self.dtype]:
            made = sum_of([c.intervention for c in changes])
            self.outcome.failures.append(
                f"{what}: off by {error:.2g} of the scale of the logits: {made!r} on {self.texts!r}"
            )

    @staticmethod
    def _error(found: Tensor, plain: Tensor) -> float:
        """The largest difference, of the scale of the plain values."""
        found, plain = found.float(), plain.float()
        usual = plain.abs() < 1e30  # some models bar tokens by the lowest number there is
        if not torch.equal(found.abs() < 1e30, usual):
            return float("inf")
        scale = plain[usual].abs().max().clamp(min=1e-20)
        return float(((found - plain)[usual].abs() / scale).max())

    def _check_generation(self, variants: Sequence, interventions: Sequence) -> None:
        options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        if self.vlm.family.name == "paligemma":
            self.outcome.notes.append("it reads all of a longer prompt both ways")
            return
        for row in self.rows:
            tokens = self.vlm.hf_model.generate(**row.inputs, **options)[0, row.length :].tolist()
            plain = self._greedy(row, ())
            if not self._same_tokens(tokens, plain):
                self.outcome.notes.append("its generation is not its run on a longer prompt")
                return
        swept = self.vlm.sweep(
            self.prompt, interventions, measure=GeneratedTokens(3), progress=False
        ).records
        for v, changes in enumerate(variants):
            # generate computes the logits of the last position only, unless told otherwise
            whole = any(c.plain(0).point.name == "hook_logits" for c in changes)
            run = self.vlm.generate(
                self.prompt, max_new_tokens=3, interventions=interventions[v], eos_token_id=-1,
                **({"logits_to_keep": 0} if whole else {}),
            ).tokens  # fmt: skip
            for r, (row, edits) in enumerate(self._rows(changes)):
                plain = self._greedy(row, edits)
                in_sweep = swept[v * len(self.rows) + r]["tokens"]
                for what, tokens in (("generate", run[r].tolist()), ("swept", in_sweep)):
                    if not self._same_tokens(tokens, plain):
                        self.outcome.failures.append(
                            f"{what}, row {r}: {tokens}, not {plain}: {interventions[v]!r} on "
                            f"{self.texts!r}"
                        )

    def _greedy(self, row: Prompt, edits: Sequence[PlainEdit]) -> list[tuple[int, float]]:
        picture = self.vlm.architecture.image_token_id
        return plain_greedy(self.vlm.hf_model, dict(row.inputs), edits, 3, picture)

    def _same_tokens(self, tokens: Sequence[int], plain: Sequence[tuple[int, float]]) -> bool:
        """Whether tokens are those of plain runs, up to the first that rounding could decide."""
        ends = self.vlm.hf_model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        for token, (expected, margin) in zip(tokens, plain, strict=False):
            if margin < 2 * WITHIN[self.dtype]:
                return True
            if token != expected:
                return False
            if token in ends:
                return True
        return True

    def _check_capture(self, variants: Sequence, interventions: Sequence) -> None:
        """What is captured at a text point under variants, from replays, against plain hooks."""
        inside = [
            p for p in self.vlm.points().values()
            if p.space == "text" and not p.on_demand and p.name != "hook_logits"
            and (any(self.images) or not p.needs_pictures)
        ]  # fmt: skip
        point = self.source.choice(inside)
        swept = self.vlm.sweep(
            self.prompt, interventions, measure=Capture(point.name, -1), progress=False
        )
        for v, changes in enumerate(variants):
            for r, (row, edits) in enumerate(self._rows(changes)):
                plain = plain_read(self.vlm.hf_model, dict(row.inputs), point, edits)
                found = swept.records[v * len(self.rows) + r][point.name][0]
                self._same(found, plain[0, -1], f"captured {point.name}, row {r}", changes)


def sum_of(interventions: Sequence[Intervention]) -> Intervention:
    """Several interventions as one."""
    made = interventions[0]
    for more in interventions[1:]:
        made = made + more
    return made
