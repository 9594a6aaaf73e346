"""Two prompts that differ in one thing, with the answers of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlm_lens.attribution import Attribution, Edges, attribute, attribute_edges
from vlm_lens.attribution.attribute import STEPS
from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import Answering, answering
from vlm_lens.layout.cells import Cells
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.measures import LogitDiff, LogProb, Measure
from vlm_lens.measures.answers import Answer
from vlm_lens.measures.base import BoundMeasure
from vlm_lens.measures.named import as_measure
from vlm_lens.pairs.changed import changed_cells
from vlm_lens.pairs.show import as_html, as_text
from vlm_lens.patching.exact import Direction
from vlm_lens.patching.patch import At as Places
from vlm_lens.patching.patch import Heads, patch
from vlm_lens.patching.path import patch_paths
from vlm_lens.patching.path_plan import Freeze
from vlm_lens.patching.receivers import LOGITS, Receiver
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores import Scores
from vlm_lens.storage.fingerprint import fingerprint


class PairError(VLMLensError):
    """Two prompts or answers that make no pair."""


@dataclass(frozen=True, eq=False)
class Pair(Answering):
    r"""A clean and a corrupt prompt of one row, which differ in one thing, and their answers.

    Answers are texts (`" Paris"` and `"Paris"` are two), token ids or `AnyOf(...)`, and count by
    their first token. Which position stands for which is found when the pair is made.

    Attributes:
        clean: The prompt whose answer is looked for.
        corrupt: The one that differs.
        answer: What is right after the clean prompt.
        other: What is right after the corrupt one; `None` where nothing is (a masked picture).
        differs: What differs, in words.
        positions: Which position of one stands for which of the other.

    Raises:
        PairError: Prompts that are none, of several rows or of two models; equal answers.
        PositionError: Pictures of other numbers or grids of patches; the message says what to do.

    Example:
        >>> clean, corrupt = (vlm.prompt("Q:<image>\nA:", [flag]) for flag in (france, peru))
        >>> pair = Pair(clean, corrupt, answer="Paris", other="Lima")
        >>> pair.patch(vlm, "blocks.*.attn.hook_z", heads="each", at=[Images(), Text(), Last()])
    """

    clean: Prompt
    corrupt: Prompt
    answer: Answer
    other: Answer | None = None
    differs: str = field(default="", kw_only=True)
    positions: PositionMap = field(init=False, repr=False)

    def __post_init__(self):
        for name, prompt in (("clean", self.clean), ("corrupt", self.corrupt)):
            if not isinstance(prompt, Prompt):
                raise PairError(
                    f"The {name} prompt is a {type(prompt).__name__}: make it for a model first, "
                    "vlm.prompt(text, images)."
                )
            if len(prompt) != 1:
                raise PairError(
                    f"The {name} prompt is a batch of {len(prompt)} rows: make one Pair a row, and "
                    "put them together, Pairs([...])."
                )
        if self.clean.made_for != self.corrupt.made_for:
            raise PairError("The two prompts were made for different models.")
        if self.answer == self.other:
            raise PairError(f"Both answers are {self.answer!r}, so nothing tells them apart.")
        found = position_map(self.clean.layout, self.corrupt.layout)
        object.__setattr__(self, "positions", found)

    @property
    def measure(self) -> LogitDiff | LogProb:
        """What is measured if nothing else is said: the logit difference of the two answers.

        The log probability of the answer where the corrupt prompt has none of its own.
        """
        return LogProb(self.answer) if self.other is None else LogitDiff(self.answer, self.other)

    @property
    def changed(self) -> Cells:
        """Where the prompts differ, as a place of the clean one: tokens, and patches by pixels.

        `Images() - pair.changed` are the patches that do not.

        Raises:
            PositionError: They are equal everywhere.
        """
        return changed_cells(self.clean, self.corrupt, self.positions)

    @answering
    def check(self, vlm: HookedModel) -> Pair:
        """This pair, if its answers can be told apart by a model's next token.

        Raises:
            MeasureError: They begin with the same token, or are no answers to this model.
        """
        self.bind(vlm)
        return self

    def bind(
        self, vlm: HookedModel, measure: Measure | None = None
    ) -> tuple[BoundMeasure, BoundMeasure]:
        """A measure of both prompts, which says first if it does not fit one of them.

        Args:
            vlm: The model.
            measure: `pair.measure` by default.

        Raises:
            VLMLensError: It does not fit the model or a prompt.
        """
        bound = self._asked(measure).bind
        return bound(vlm, vlm.as_prompt(self.clean)), bound(vlm, vlm.as_prompt(self.corrupt))

    def _asked(self, measure: Measure | None) -> Measure:
        return self.measure if measure is None else as_measure(measure)

    def flipped(self) -> Pair:
        """The same pair with clean and corrupt changed over.

        Raises:
            PairError: The corrupt prompt has no answer.
        """
        if self.other is None:
            raise PairError("The corrupt prompt has no answer of its own, so it can't be clean.")
        return Pair(self.corrupt, self.clean, self.other, self.answer, differs=self.differs)

    @answering
    def patch(
        self,
        vlm: HookedModel,
        points: NamesFilter,
        *,
        at: Places = None,
        heads: Heads = None,
        window: int = 1,
        direction: Direction = "denoise",
        measure: Measure | None = None,
        engine: str = "auto",
        memory: int | None = None,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> Scores:
        """The share of the difference that each block, head and place carries, exactly.

        One forward for each, of which only what changes is computed; see `vlm_lens.patching`.

        Args:
            vlm: The model.
            points: A point, a glob or a list, of one kind: `"blocks.*.attn.hook_z"`.
            at: A position (all by default); a list of them, or a mapping from labels, one score
                each; `"each"` or `Each(position)` for every position by itself; or a function of
                the pair that gives one of these. Named on the clean prompt; `pair.changed` is where
                the prompts differ.
            heads: `"each"`, or the numbers of those that are patched, each by itself; `None`
                patches all heads together.
            window: How many neighbouring blocks are patched together.
            direction: `"denoise"` puts clean activations into the corrupt run and gives the
                recovered share, `(patched - corrupt) / (clean - corrupt)`; `"noise"` puts corrupt
                ones into the clean run and gives the lost share,
                `(clean - patched) / (clean - corrupt)`.
            measure: What the difference is of; `pair.measure` by default.
            engine: As for `vlm.sweep`.
            memory: As for `vlm.sweep`.
            save: A folder for finished variants; a run that was killed goes on from there.
            progress: Whether to show a progress bar.

        Returns:
            Scores by `layer` (of a window its first block), `head`, and `kind` (of several places)
            or `position`; an axis is left out where there is one of it.

        Raises:
            PatchingError: The measure gives the same for both prompts.
            VLMLensError: Something does not fit the model or the prompts (before any run).
        """
        return patch(
            vlm, self.clean, self.corrupt, points, measure=self._asked(measure),
            at=at(self) if callable(at) else at, heads=heads, window=window,
            direction=direction, positions=self.positions,
            engine=engine, memory=memory, save=save, progress=progress,
        )  # fmt: skip

    @answering
    def patch_paths(
        self,
        vlm: HookedModel,
        senders: NamesFilter,
        *,
        receivers: Receiver | str | Sequence[Receiver | str] = LOGITS,
        freeze: Freeze,
        heads: Heads = None,
        at: Places = None,
        direction: Direction = "noise",
        measure: Measure | None = None,
        memory: int | None = None,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> Scores:
        """The share of the difference that goes from each sender to each receiver.

        Wang et al. 2022 (arXiv 2211.00593); see `vlm_lens.patching.path` for the runs.

        Args:
            vlm: The model.
            senders: Points of one kind: `"blocks.*.attn.hook_z"`, `"blocks.*.hook_mlp_out"`, ...
            receivers: `"logits"`, points, or `Receiver(point, head)`; one or several. Inputs of
                heads are `attn.hook_q`, `hook_k` and `hook_v`, that of an MLP is
                `ln2.hook_normalized`.
            freeze: What is held at its value in the base run behind the sender: `"attention"` or
                `"all"` (attention and MLPs).
            heads: Of the senders: `"each"`, numbers, or `None` for all together.
            at: Where senders are changed; as for `patch`.
            direction: `"noise"` (the lost share) or `"denoise"` (the recovered share).
            measure: What the difference is of; `pair.measure` by default.
            memory: Bytes that recorded inputs, and variants running together, may take.
            save: A folder for finished senders; a run that was killed goes on from there.
            progress: Whether to show a progress bar.

        Returns:
            Scores by the axes of the senders and `receiver`; axes of one entry are left out. NaN
            where the sender comes after the receiver.

        Raises:
            NoDifference: The measure gives the same for both prompts.
            VLMLensError: Something does not fit the model or the prompts (before any run).
        """
        return patch_paths(
            vlm, self.clean, self.corrupt, senders=senders, receivers=receivers, freeze=freeze,
            heads=heads, at=at(self) if callable(at) else at, direction=direction,
            measure=self._asked(measure), positions=self.positions, memory=memory,
            save=save, progress=progress,
        )  # fmt: skip

    @answering
    def attribute(
        self,
        vlm: HookedModel,
        points: NamesFilter,
        *,
        at: Places = None,
        heads: Heads = None,
        method: str = "gradient",
        steps: int = STEPS,
        direction: Direction = "denoise",
        features: bool = False,
        measure: Measure | None = None,
    ) -> Attribution:
        """What `patch` would give, estimated for all places at once; see `vlm_lens.attribution`.

        Args:
            vlm: The model.
            points: As for `patch`.
            at: As for `patch`.
            heads: As for `patch`.
            method: `"gradient"` (two forwards and one backward in all), or `"ig"`, the mean of the
                gradient on the way from one prompt to the other.
            steps: Of `"ig"`.
            direction: As for `patch`.
            features: Whether each feature is a node by itself, a neuron of `mlp.hook_post`.
            measure: What the difference is of; `pair.measure` by default.

        Returns:
            Scores on the axes of `patch`; `check(vlm)` patches the best of them exactly.

        Raises:
            VLMLensError: Something does not fit the model, the measure or the prompts.
        """
        return attribute(
            vlm, self.clean, self.corrupt, points, measure=self._asked(measure),
            at=at(self) if callable(at) else at, heads=heads, method=method, steps=steps,
            direction=direction, features=features, positions=self.positions,
        )  # fmt: skip

    @answering
    def edges(
        self,
        vlm: HookedModel,
        *,
        method: str = "gradient",
        steps: int = STEPS,
        measure: Measure | None = None,
    ) -> Edges:
        """The share of the difference that goes along each edge between heads, MLPs and logits.

        Args:
            vlm: The model.
            method: `"gradient"` or `"ig"`, as for `attribute`.
            steps: Of `"ig"`.
            measure: What the difference is of; `pair.measure` by default.

        Returns:
            Scores by `component` and `receiver`; `circuit(n)` takes the strongest edges.

        Raises:
            VLMLensError: The model's parts do not each add to the stream, or the prompts are of two
                shapes.
        """
        return attribute_edges(
            vlm, self.clean, self.corrupt, measure=self._asked(measure), method=method,
            steps=steps, positions=self.positions,
        )  # fmt: skip

    def identity(self) -> str:
        """What tells it from others, by content; see `fingerprint`."""
        prompts = [(p.inputs, p.layouts) for p in (self.clean, self.corrupt)]
        return fingerprint(prompts, self.answer, self.other)

    def __repr__(self) -> str:
        return as_text(self.clean, self.corrupt, self._head())

    def _repr_html_(self) -> str:
        return as_html(self.clean, self.corrupt, self._head())

    def _head(self) -> str:
        against = "" if self.other is None else f" against {self.other!r}"
        what = f", {self.differs}" if self.differs else ""
        return f"Pair({self.answer!r}{against}{what})"
