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
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

import tiny
import torch
from families.every import ENCODER_DECODERS, LMS, VLMS
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
from vlm_lens.engine import buffers
from vlm_lens.engine.tower_rows import JoiningRows
from vlm_lens.interventions import Intervention
from vlm_lens.measures import Capture, GeneratedTokens
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep import runner

TEXTS = ("Q:Greece\nA:", "What is the capital of the country?", "Q:Peru\nA:Lima\n\nQ:Japan\nA:")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How far two computations may lie apart, of the scale of the logits; and how clear a token must be.
WITHIN = {"float32": 1e-4, "bfloat16": 0.1}
BY_ROUNDING = 10  # how many times what one rounding of the input does a run may lie off
PER_GROUP = 4
GENERATING = 0.2  # the share of groups that generate
MODELS = {**VLMS, **LMS, **ENCODER_DECODERS}


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
        paths: How often mechanisms ran that results do not tell of: variants in the plain run,
            blocks of a tower that computed some of their rows, activations put into memory that an
            earlier run's cache was let go of with.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    worst: float = 0.0
    engines: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)


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
        with counted(outcome):
            Group(name, dtype, source, outcome).run()
    except Exception:  # noqa: BLE001  reported with the group that it is of
        outcome.failures.append(traceback.format_exc(limit=-6))
    return title, outcome


@contextmanager
def counted(outcome: Outcome) -> Iterator[None]:
    """While open, what runs inside the engine is counted, and small activations are reused, too."""
    paths: Counter[str] = Counter()
    jointly, made, least = runner.run_jointly, JoiningRows.__init__, buffers._LEAST

    def counting(run: object, inputs: object, variants: Sequence, **more: object) -> object:
        found = jointly(run, inputs, variants, **more)
        paths["variants in the plain run"] += len(variants)
        return found

    def joining(self: JoiningRows, *args: object) -> None:
        made(self, *args)
        paths["blocks of some rows"] += len(self._partly)

    runner.run_jointly, JoiningRows.__init__, buffers._LEAST = counting, joining, 1
    try:
        yield
    finally:
        runner.run_jointly, JoiningRows.__init__, buffers._LEAST = jointly, made, least
        for path, n in paths.items():
            outcome.paths[path] = outcome.paths.get(path, 0) + n


class Group:
    """One prompt and some variants of it."""

    def __init__(self, name: str, dtype: str, source: random.Random, outcome: Outcome):
        self.vlm, self.made = model_of(name, dtype), MODELS[name]
        self.dtype, self.source, self.outcome = dtype, source, outcome
        self.pictured = self.vlm.family.takes_images
        self.crossing = name in ENCODER_DECODERS
        self.texts, self.images = self._drawn()
        # what a decoder beside an encoder has answered so far
        n_said = source.randint(1, 4) if self.crossing else 0
        self.said = [[source.randrange(10, 90) for _ in range(n_said)] for _ in self.texts]
        self.prompt = self._prompt(self.texts, self.images, self.said)
        # each row alone: its tensors, and where things stand in it
        alone = zip(self.texts, self.images, self.said, strict=True)
        self.rows = [self._prompt([t], [i], [s]) for t, i, s in alone]
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
            n = min(n, 1) if self.crossing else n  # Florence-2 reads one picture
            texts.append("<image>\n" * n + self.source.choice(TEXTS))
            images.append(
                [tiny.noise_picture(self.source.randrange(50), (40, 36)) for _ in range(n)]
            )
        return texts, images

    def _prompt(self, texts: list[str], images: list[list], said: list[list[int]]) -> Prompt:
        made = self.vlm.prompt(texts, images if any(images) else None)
        if not self.crossing:
            return made
        answer = torch.cat([made.inputs["decoder_input_ids"], torch.tensor(said)], 1)
        return self.vlm.as_prompt({**made.inputs, "decoder_input_ids": answer})

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
        self._check_few(variants, interventions, expected)
        if also < GENERATING:
            self._check_generation(variants)
        elif also < 0.35:
            self._check_capture(variants, interventions)
        elif also < 0.6:
            self._check_caches(variants, interventions)

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

    def _check_few(self, variants: Sequence, interventions: Sequence, expected: Sequence) -> None:
        """Two variants that change text alone, which may run in the plain run itself."""
        few = [
            v for v, changes in enumerate(variants)
            if all(c.point.space == "text" and not c.point.needs_pictures for c in changes)
        ][:2]  # fmt: skip
        if not few:
            return
        made = [interventions[v] for v in few]
        swept = self.vlm.sweep(self.prompt, made, measure="logits", progress=False)
        found = swept.stack("logits").unflatten(0, (len(few), -1))
        for place, v in enumerate(few):
            for row, plain in enumerate(expected[v]):
                self._same(found[place, row], plain[-1:], f"few, row {row}", variants[v], row)

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

    def _check_caches(self, variants: Sequence, interventions: Sequence) -> None:
        """Caches of runs in turn, some let go of: each as plain hooks read it, then and later."""
        inside, free, held = self._readable(), set(), []
        for v in [*range(len(variants))] * 3:
            cache = self.vlm.run_with_cache(self.prompt, interventions=interventions[v])[1]
            places = {cache[name].data_ptr() for name in cache}
            reused = len(places & free)
            if reused:
                path = "activations in memory let go of"
                self.outcome.paths[path] = self.outcome.paths.get(path, 0) + reused
            point = self.source.choice(inside)
            by_then = self._by_then(point)
            for r, (row, edits) in enumerate(self._rows(variants[v])):
                edits = [edit for edit in edits if edit.point.name in by_then]
                plain = plain_read(self.vlm.hf_model, dict(row.inputs), point, edits)[0]
                found = cache[point.name][r, -len(plain) :]
                self._same(found, plain, f"cached {point.name}, row {r}", variants[v], r)
            if self.source.random() < 0.4:
                held.append((cache, {name: cache[name].clone() for name in cache}))
            else:
                free |= places  # noted, so that nothing else can be put there
            del cache
        for cache, copies in held:
            changed = [n for n, copy in copies.items() if not same_bits(cache[n], copy)]
            if changed:
                self.outcome.failures.append(f"a cache that is held changed: {changed}")

    def _readable(self) -> list[Point]:
        return [
            p for p in self.vlm.points().values()
            if p.space == "text" and not p.on_demand and p.name != "hook_logits"
            and (any(self.images) or not p.needs_pictures)
        ]  # fmt: skip

    def _by_then(self, point: Point) -> set[str]:
        """A point shows what was done up to it, where a later one is the same tensor, too."""
        names = list(self.vlm.architecture.points)
        return set(names[: names.index(point.name) + 1])

    def _check_capture(self, variants: Sequence, interventions: Sequence) -> None:
        """What is captured at a text point under variants, from replays, against plain hooks."""
        inside = self._readable()
        point = self.source.choice(inside)
        by_then = self._by_then(point)
        swept = self.vlm.sweep(
            self.prompt, interventions, measure=Capture(point.name, -1), progress=False
        )
        for v, changes in enumerate(variants):
            for r, (row, edits) in enumerate(self._rows(changes)):
                edits = [edit for edit in edits if edit.point.name in by_then]
                plain = plain_read(self.vlm.hf_model, dict(row.inputs), point, edits)
                found = swept.records[v * len(self.rows) + r][point.name][0]
                self._same(found, plain[0, -1], f"captured {point.name}, row {r}", changes, r)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN included."""
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def sum_of(interventions: Sequence[Intervention]) -> Intervention:
    """Several interventions as one."""
    made = interventions[0]
    for more in interventions[1:]:
        made = made + more
    return made
