"""Random cases for comparing runs, sweeps and generations with plain transformers and torch hooks.

A group is one prompt of one or two rows on a tiny model of one family, with variants of one to
three changes of every kind. Each variant is a case: its run is compared with `plain_edits` at every
position of every row, its replay at the last one, and in some groups its generated tokens and the
activations that are captured.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

import tiny
import torch
from families.every import LMS, VLMS
from fuzzing_changes import Change, Changes
from plain_edits import (
    PlainEdit,
    plain_greedy,
    plain_read,
    plain_run,
    with_patterns_as_z,
)
from torch import Tensor

from vlm_lens import All, HookedVLM
from vlm_lens.interventions import Intervention
from vlm_lens.measures import Capture, GeneratedTokens
from vlm_lens.prompts.prompt import Prompt

TEXTS = ("Q:Greece\nA:", "What is the capital of the country?", "Q:Peru\nA:Lima\n\nQ:Japan\nA:")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How far two computations may lie apart, of the scale of the logits; and how clear a token must be.
WITHIN = {"float32": 1e-4, "bfloat16": 0.1}
BY_ROUNDING = 10  # how many times what one rounding of the input does a run may lie off
PER_GROUP = 4
GENERATING = 0.2  # the share of groups that generate
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
        kinds: How many changes of each kind were made.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    worst: float = 0.0
    engines: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)


@cache
def model_of(name: str, dtype: str) -> HookedVLM:
    """A tiny model, saved and loaded as a user's is."""
    folder, made = Path(mkdtemp(prefix="fuzz-")), MODELS[name]
    getattr(import_module(made.module), made.save)(folder=folder, **made.options)
    return HookedVLM.from_pretrained(folder, dtype=DTYPES[dtype])


def model_name(number: int) -> str:
    """The model that a group is of."""
    return list(MODELS)[number % len(MODELS)]


def run_group(number: int, seed: int = 0) -> tuple[str, Outcome]:
    """Runs one group; a number and a seed always mean the same group.

    Returns:
        What the group is, and what it gave.
    """
    source = random.Random(f"{seed} {number}")
    name = model_name(number)
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
        if len(self.rows) > 1 and not self._batches_alike():
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
        # some groups generate, and changes act at new tokens there, others capture activations
        also = self.source.random()
        made = self.made.text_only, self.source, self.rows, also < GENERATING
        changes = Changes(self.vlm, *made)
        variants = [changes.variant() for _ in range(PER_GROUP)]
        interventions = [sum_of([c.intervention for c in changes]) for changes in variants]
        self.outcome.kinds = dict(Counter(c.title for changes in variants for c in changes))
        expected = [
            [plain_run(self.vlm.hf_model, dict(row.inputs), edits) for row, edits in self._rows(v)]
            for v in variants
        ]
        for changes, made, rows in zip(variants, interventions, expected, strict=True):
            self.outcome.cases += 1
            logits = self.vlm.run(self.prompt, interventions=made)
            for row, plain in enumerate(rows):
                mine = logits[row, -len(plain) :]
                self._same(mine, plain, f"run, row {row}", changes, row)
        swept = self.vlm.sweep(
            self.prompt, interventions, measure="logits", progress=False,
            memory=self.source.choice((1, 10**6, None)),
        )  # fmt: skip
        self.outcome.engines = dict(swept.engines)
        found = swept.stack("logits").unflatten(0, (len(variants), -1))
        for v, changes in enumerate(variants):
            for row, plain in enumerate(expected[v]):
                self._same(found[v, row], plain[-1:], f"sweep, row {row}", changes, row)
        if also < GENERATING:
            self._check_generation(variants)
        elif also < 0.35:
            self._check_capture(variants, interventions)

    def _rows(self, changes: Sequence[Change]) -> Iterator[tuple[Prompt, list[PlainEdit]]]:
        points = self.vlm.architecture.points
        order = {name: place for place, name in enumerate(points)}
        for number, row in enumerate(self.rows):
            edits = [edit for c in changes for edit in c.plain(number)]
            # points act in the order in which the model computes them, at one point as given
            edits.sort(key=lambda edit: order[edit.point.name])
            yield row, with_patterns_as_z(edits, points)

    # ------------------------------------------------------------------ comparisons

    def _same(
        self, found: Tensor, plain: Tensor, what: str, changes: Sequence[Change], row: int
    ) -> None:
        error = self._error(found, plain)
        if not error <= WITHIN[self.dtype]:
            if error <= BY_ROUNDING * self._moved_by_rounding(changes, row):
                self.outcome.notes.append("as far apart as one rounding of the input moves it")
                return
            made = sum_of([c.intervention for c in changes])
            self.outcome.failures.append(
                f"{what}: off by {error:.2g} of the scale of the logits: {made!r} on {self.texts!r}"
            )
        self.outcome.worst = max(self.outcome.worst, error)

    def _moved_by_rounding(self, changes: Sequence[Change], number: int) -> float:
        """How far plain logits move where each number that enters the blocks is rounded anew."""
        row, edits = list(self._rows(changes))[number]
        points, plain = self.vlm.points(), plain_run(self.vlm.hf_model, dict(row.inputs), edits)
        half = torch.finfo(plain.dtype).eps / 2
        moved = 0.0
        for seed in range(3):
            source = torch.Generator().manual_seed(seed)
            noise = []
            for name in ("vision.blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"):
                if name in points and (row.layout.images or points[name].space == "text"):
                    cells = All().resolve(row.layout, points[name].space)
                    signs = torch.randn(len(cells), points[name].sizes[-1], generator=source).sign()
                    noise.append(PlainEdit(points[name], cells, "scale", list(1 + half * signs)))
            new = plain_run(self.vlm.hf_model, dict(row.inputs), [*edits, *noise])
            moved = max(moved, self._error(new, plain))
        return moved

    @staticmethod
    def _error(found: Tensor, plain: Tensor) -> float:
        """The largest difference, of the scale of the plain values."""
        found, plain = found.float(), plain.float()
        usual = plain.abs() < 1e30  # some models bar tokens by the lowest number there is
        if not torch.equal(found.abs() < 1e30, usual):
            return float("inf")
        scale = plain[usual].abs().max().clamp(min=1e-20)
        return float(((found - plain)[usual].abs() / scale).max())

    def _check_generation(self, variants: Sequence) -> None:
        interventions = [sum_of([c.in_generation for c in changes]) for changes in variants]
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
            whole = any(c.point.name == "hook_logits" for c in changes)
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
        names = list(self.vlm.architecture.points)
        # a point shows what was done up to it, where a later one is the same tensor, too
        by_then = set(names[: names.index(point.name) + 1])
        for v, changes in enumerate(variants):
            for r, (row, edits) in enumerate(self._rows(changes)):
                edits = [edit for edit in edits if edit.point.name in by_then]
                plain = plain_read(self.vlm.hf_model, dict(row.inputs), point, edits)
                found = swept.records[v * len(self.rows) + r][point.name][0]
                self._same(found, plain[0, -1], f"captured {point.name}, row {r}", changes, r)


def sum_of(interventions: Sequence[Intervention]) -> Intervention:
    """Several interventions as one."""
    made = interventions[0]
    for more in interventions[1:]:
        made = made + more
    return made
