"""Many pairs: what holds of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm.auto import tqdm

from vlm_lens.attribution.attribute import METHODS, STEPS
from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.integers import as_integer
from vlm_lens.keywords import Answering, answering
from vlm_lens.measures import Measure
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.pairs.scores import PAIR, PairScores
from vlm_lens.pairs.together import Asked
from vlm_lens.patching.exact import SHARES, Direction, check_direction
from vlm_lens.patching.parts import NoDifference, numbers
from vlm_lens.patching.patch import At, Heads, Plan
from vlm_lens.patching.path_plan import Freeze, plan_paths
from vlm_lens.patching.receivers import LOGITS, Receiver
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.storage.arrays import ArrayFolder, collect


@dataclass(frozen=True, eq=False)
class Pairs(Answering, Sequence[Pair]):
    """Several pairs, over which a result is averaged.

    Attributes:
        pairs: The pairs.
        name: What they are, in a few words.
        seed: The seed with which they were drawn, if they were.
    """

    pairs: tuple[Pair, ...]
    name: str = ""
    seed: int | None = None

    def __post_init__(self):
        given = tuple(self.pairs) if isinstance(self.pairs, Iterable) else (self.pairs,)
        wrong = next((p for p in given if not isinstance(p, Pair)), None)
        if wrong is not None:
            raise PairError(f"Pairs holds Pair(...), not {type(wrong).__name__}.")
        if not given:
            raise PairError("There are no pairs.")
        object.__setattr__(self, "pairs", given)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        found = self.pairs[index]
        return found if isinstance(found, Pair) else replace(self, pairs=found)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    # ------------------------------------------------------------------ which pairs

    def check(self, vlm: HookedModel) -> Pairs:
        """These pairs, if a model's next token can tell their answers apart.

        Raises:
            MeasureError: It can't; the message names the pair.
        """
        for i, pair in enumerate(self.pairs):
            with _naming(i):
                pair.check(vlm)
        return self

    def measured(
        self, vlm: HookedModel, measure: Measure | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The measure of each clean and each corrupt prompt, `[pairs]` each.

        Args:
            vlm: The model.
            measure: `pair.measure` of each by default.
        """
        clean, corrupt = (
            np.array([_measured(vlm, getattr(p, side), measure or p.measure) for p in self.pairs])
            for side in ("clean", "corrupt")
        )
        return clean, corrupt

    def solved(self, vlm: HookedModel, *, margin: float = 0.01) -> Pairs:
        """Those pairs whose prompts the model answers as they say.

        The answer is more likely than the other one after the clean prompt, and less after the
        corrupt one; of a pair without another answer, more likely after the clean prompt.

        Args:
            vlm: The model.
            margin: By how much, in logits; what is nearer counts as equal.

        Raises:
            PairError: There is none.
        """
        clean, corrupt = self.measured(vlm)
        kept = [
            pair
            for pair, a, b in zip(self.pairs, clean, corrupt, strict=True)
            if (a - b > margin if pair.other is None else min(a, -b) > margin)
        ]
        if not kept:
            raise PairError(
                f"{vlm.name} answers none of these {len(self)} pairs as they say: look at "
                "pairs.measured(vlm), and at the form of the answers (' Paris' or 'Paris')."
            )
        return replace(self, pairs=tuple(kept))

    def permuted(self, seed: int = 0) -> Pairs:
        """The same prompts with the answers of other pairs: a control, in which nothing is to find.

        Args:
            seed: The seed of the permutation, in which no pair keeps its answers.

        Raises:
            PairError: All pairs have the same answers, or there is one pair only.
        """
        if as_integer(seed, "seed", PairError) < 0:
            raise PairError(f"A seed is not negative, as {seed} is.")
        answers = [(pair.answer, pair.other) for pair in self.pairs]
        generator = np.random.default_rng(seed)
        for _ in range(1000):
            order = generator.permutation(len(self))
            if all(not set(answers[i]) & set(answers[j]) - {None} for i, j in enumerate(order)):
                pairs = [
                    Pair(pair.clean, pair.corrupt, *answers[j], differs=pair.differs)
                    for pair, j in zip(self.pairs, order, strict=True)
                ]
                return Pairs(tuple(pairs), f"{self.name}, answers permuted".strip(", "), seed)
        raise PairError(
            "No permutation gives every pair answers that it does not have: take more pairs, of "
            "more different answers."
        )

    # ------------------------------------------------------------------ patching

    @answering
    def patch(
        self,
        vlm: HookedModel,
        points: NamesFilter,
        *,
        at: At = None,
        heads: Heads = None,
        window: int = 1,
        direction: Direction = "denoise",
        measure: Measure | None = None,
        engine: str = "auto",
        memory: int | None = None,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> PairScores:
        """`Pair.patch` of each pair, with what that says of their mean.

        Pairs for which the measure gives the same on both prompts are left out, and said.

        Args:
            vlm: The model.
            points: As for `Pair.patch`.
            at: As for `Pair.patch`; single positions need prompts of one shape, and a function of
                the pair gives the same labels for each.
            heads: As for `Pair.patch`.
            window: As for `Pair.patch`.
            direction: As for `Pair.patch`.
            measure: What the differences are of; each pair's own by default.
            engine: As for `vlm.sweep`.
            memory: As for `vlm.sweep`.
            save: A folder for finished pairs; a run that was killed goes on from there.
            progress: Whether to show a progress bar.

        Returns:
            Scores with the axis `pair` in front; `statistics()` gives mean, interval and p-value.

        Raises:
            NoDifference: The measure gives the same on both prompts of every pair.
            VLMLensError: Something does not fit the model or one of the prompts (before any run).
        """
        asked = Asked(vlm, points, at, heads, window, direction, measure, engine, memory)
        first = self._planned(asked.plan)
        shares = self._finished(
            vlm, lambda left: asked.batches(self.pairs, left),
            lambda batch: asked.shares([self.pairs[i] for i in batch]),
            holds="patched pairs", asked=asked.identity(), save=save, progress=progress,
        )  # fmt: skip
        return self._result(vlm, first, shares, direction, measure)

    @answering
    def patch_paths(
        self,
        vlm: HookedModel,
        senders: NamesFilter,
        *,
        receivers: Receiver | str | Sequence[Receiver | str] = LOGITS,
        freeze: Freeze,
        heads: Heads = None,
        at: At = None,
        direction: Direction = "noise",
        measure: Measure | None = None,
        memory: int | None = None,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> PairScores:
        """`Pair.patch_paths` of each pair, with what that says of their mean.

        Pairs for which the measure gives the same on both prompts are left out, and said.

        Args:
            vlm: The model.
            senders: As for `Pair.patch_paths`.
            receivers: As for `Pair.patch_paths`.
            freeze: As for `Pair.patch_paths`.
            heads: As for `Pair.patch_paths`.
            at: As for `patch`.
            direction: As for `Pair.patch_paths`.
            measure: What the differences are of; each pair's own by default.
            memory: As for `Pair.patch_paths`.
            save: A folder for finished pairs; a run that was killed goes on from there.
            progress: Whether to show a progress bar.

        Returns:
            Scores with the axis `pair` in front; `statistics()` gives mean, interval and p-value of
            each path.

        Raises:
            NoDifference: The measure gives the same on both prompts of every pair.
            VLMLensError: Something does not fit the model or one of the prompts (before any run).
        """
        check_direction(direction)
        how: dict[str, Any] = {"receivers": receivers, "freeze": freeze, "heads": heads}

        def plan(pair: Pair) -> Plan:
            pair.bind(vlm, measure)
            place = at(pair) if callable(at) else at
            return plan_paths(vlm, pair.positions, senders, at=place, **how)

        def paths(pair: Pair) -> Scores:
            return pair.patch_paths(
                vlm, senders, at=at, direction=direction, measure=measure, memory=memory,
                progress=False, **how,
            )  # fmt: skip

        first = self._planned(plan)
        shares = self._finished(
            vlm, lambda left: ([i] for i in left),
            lambda batch: [self._shares(batch[0], paths, first)],
            holds="patched paths", asked=(senders, at, direction, measure, how), save=save,
            progress=progress,
        )  # fmt: skip
        return self._result(vlm, first, shares, direction, measure, "path patching")

    @answering
    def attribute(
        self,
        vlm: HookedModel,
        points: NamesFilter,
        *,
        at: At = None,
        heads: Heads = None,
        method: str = "gradient",
        steps: int = STEPS,
        direction: Direction = "denoise",
        measure: Measure | None = None,
        progress: bool = True,
    ) -> PairScores:
        """`Pair.attribute` of each pair, on the axes of `patch`; arguments as there.

        Raises:
            NoDifference: The measure gives the same on both prompts of every pair.
            VLMLensError: Something does not fit the model, the measure or one of the prompts.
        """
        first = self._planned(Asked(vlm, points, at, heads, 1, direction, measure).plan)

        def attributed(pair: Pair) -> Scores:
            return pair.attribute(
                vlm, points, at=at, heads=heads, method=method, steps=steps,
                direction=direction, measure=measure,
            )  # fmt: skip

        numbers = tqdm(range(len(self)), disable=not progress, unit="pair")
        shares = np.stack([self._shares(i, attributed, first) for i in numbers])
        return self._result(vlm, first, shares, direction, measure, METHODS[method])

    def _finished(
        self,
        vlm: HookedModel,
        batches: Callable[[list[int]], Iterable[Sequence[int]]],
        shares: Callable[[Sequence[int]], list[np.ndarray]],
        *,
        holds: str,
        asked: Any,
        save: str | Path | None,
        progress: bool,
    ) -> np.ndarray:
        """The shares of all pairs, batch by batch; finished ones are kept in a folder."""
        store = None
        if save is not None:
            identity = run_identity(vlm, pairs=list(self), asked=asked)
            store = ArrayFolder(save, identity, unit="pair", holds=holds, error=PairError)
        return collect(len(self), batches, shares, unit="pair", store=store, progress=progress)

    def _shares(self, pair: int, share: Callable[[Pair], Scores], plan: Plan) -> np.ndarray:
        """What one pair gives; NaN where it has no difference to share out."""
        try:
            with _naming(pair):
                return share(self.pairs[pair]).values.to_numpy()
        except NoDifference:
            return np.full([len(c) for c in plan.axes.values()], np.nan)

    def _planned(self, plan_of: Callable[[Pair], Plan]) -> Plan:
        """The first pair's plan, after all have been made and found to have the same axes."""
        first: Plan | None = None
        for i, pair in enumerate(self.pairs):
            with _naming(i):
                plan = plan_of(pair)
            first = first or plan
            if (plan.axes, plan.rows) != (first.axes, first.rows):
                raise PairError(
                    f"Pair {i} has other places than pair 0, and single positions can be averaged "
                    "over prompts of one shape only: ask for kinds of positions, "
                    "at=[Images(), Text(), Last()], or for the parts that all have, Each(Images())."
                )
        return first

    def _result(
        self,
        vlm: HookedModel,
        plan: Plan,
        shares: np.ndarray,
        direction: Direction,
        measure: Measure | None,
        method: str = "activation patching",
    ) -> PairScores:
        unequal = np.flatnonzero(np.isnan(shares.reshape(len(self), -1)).all(1)).tolist()
        if len(unequal) == len(self):
            raise NoDifference(
                f"The measure gives the same on both prompts of each of these {len(self)} pairs, "
                "so there is no difference to share out."
            )
        single = "position" in plan.axes
        clean = self.pairs[0].clean
        made = scores(
            shares,
            {PAIR: range(len(self)), **plan.axes},
            plan.rows if plan.space != "text" else None,
            name=SHARES[direction],
            layout=clean.layout if single else None,
            pictures=clean.images[0] if single and clean.images else (),
            space=plan.space,
            about={
                "method": f"{method} ({direction})",
                "model": vlm.name,
                **plan.about,
                "measure": "each pair's own" if measure is None else repr(measure),
                "pairs": f"{len(self)}{f' of {self.name}' if self.name else ''}",
                **({} if self.seed is None else {"seed": self.seed}),
                **({"shown on": "the clean prompt of pair 0"} if single else {}),
                **({"pairs without a difference, left out": unequal} if unequal else {}),
            },
        )
        return PairScores(**vars(made))

    def __repr__(self) -> str:
        name = f" of {self.name}" if self.name else ""
        drawn = "" if self.seed is None else f", seed {self.seed}"
        more = [f"... and {len(self) - 3} more"] if len(self) > 3 else []
        return "\n".join([f"{len(self)} pairs{name}{drawn}", *map(repr, self.pairs[:3]), *more])

    def _repr_html_(self) -> str:
        return "".join(pair._repr_html_() for pair in self.pairs[:2])


@contextmanager
def _naming(pair: int) -> Iterator[None]:
    """Errors say of which pair they are."""
    try:
        yield
    except VLMLensError as error:
        raise type(error)(f"Pair {pair}: {error}") from None


def _measured(vlm: HookedModel, prompt: Prompt, measure: Measure) -> float:
    return float(numbers(measure.bind(vlm, prompt).of_run(()))[0])
