"""A Hugging Face model with named activation points, which one run reads or changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Self, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.engine.buffers import Buffers
from vlm_lens.engine.engines import Run, engine_named
from vlm_lens.engine.firing import Handler
from vlm_lens.engine.handlers import (
    Counter,
    check_gets_gradient,
    op_handlers,
    read_handler,
    user_handler,
)
from vlm_lens.engine.picture_store import PictureStore
from vlm_lens.errors import InterventionError, PromptError
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.hooked.contexts import open_for, opened
from vlm_lens.hooked.described_model import DescribedModel
from vlm_lens.hooked.generated_cache import PREDICTING, GenerationReader
from vlm_lens.hooked.generation import Generation, GenerationSettings
from vlm_lens.hooked.habits import answers_habits
from vlm_lens.hooked.request import Keeper, check_fired, check_fires, names_to_read
from vlm_lens.integers import as_integer
from vlm_lens.interventions.base import Composed, Intervention, Target, compose
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.maker import Pictures, Promptable
from vlm_lens.prompts.prompt import Prompt

Interventions = Intervention | Iterable[Intervention] | None
FwdHooks = Sequence[tuple[NamesFilter, Callable]]


@dataclass(frozen=True)
class _Open:
    """A run that is about to happen: counters of its writes, points watched, gradients or not.

    `engine` is what calls the model.
    """

    counters: list[Counter]
    watched: tuple[str, ...]
    grad: bool
    engine: Run


def _check_last(last_logits: int | None) -> None:
    if last_logits is not None and as_integer(last_logits, "last_logits", PromptError) < 1:
        raise PromptError(f"last_logits must be at least 1, not {last_logits}.")


class HookedModel(DescribedModel):
    """Runs of a model with hooks; `HookedVLM` adds what is built on them.

    What measures, sweeps and reads many prompts takes this class, so that `HookedVLM` can offer it
    as a method. Arguments and errors are those of `HookedVLM`.
    """

    @cached_property
    def _buffers(self) -> Buffers:
        return Buffers()

    @answers_habits
    def run(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        interventions: Interventions = (),
        grad: bool = False,
        last_logits: int | None = None,
        engine: str = "hooks",
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            interventions: What to change.
            grad: Whether to record gradients.
            last_logits: Compute logits of this many of the last positions only, where the model
                can and nothing acts on others; all by default.
            engine: What calls this package at the points: torch `"hooks"`; `"nnsight"`; or
                `"ndif"`: nnsight in a remote service, where the model is.

        Raises:
            VLMLensError: The prompt or an intervention does not fit.
        """
        _check_last(last_logits)
        prompt = self.as_prompt(prompt, images)
        with self._hooked(prompt, interventions, grad=grad, engine=engine) as run:
            return self._forward(prompt, run, None if "hook_logits" in run.watched else last_logits)

    @answers_habits
    def run_with_cache(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        names_filter: NamesFilter = None,
        positions: Position | int | Sequence[int] | None = None,
        device: str | torch.device | None = None,
        interventions: Interventions = (),
        grad: bool = False,
        last_logits: int | None = None,
        engine: str = "hooks",
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Logits, and the activations at the chosen points, as they are after interventions.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            names_filter: A point, glob, list or function; by default every point but attention
                scores and patterns. Globs select among what this prompt computes (a prompt
                without pictures computes nothing in the tower).
            positions: Keep these positions only (copied, so that the rest is freed).
            device: Where to keep what is read; by default where it is computed.
            interventions: What to change.
            grad: Whether to record gradients; what is read then stays in the graph.
            last_logits: Compute logits of this many of the last positions only, where the model
                can (`hook_logits` then holds these only); all by default.
            engine: As for `run`.

        Raises:
            VLMLensError: The prompt, a point or an intervention does not fit.
        """
        _check_last(last_logits)
        prompt = self.as_prompt(prompt, images)
        at = None if positions is None else as_position(positions)
        names = names_to_read(self.architecture.points, prompt, names_filter, at)
        store: dict[str, Tensor] = {}
        table = self.architecture.points
        keeper = Keeper.of(at, (table[name] for name in names), prompt.layouts, device)
        whole = at is None and device is None and engine == "hooks"
        keep = self._buffers.reader().keep if whole else keeper.keep
        readers = {
            name: [read_handler(store, keep, keeper.put_back, keeper.queries(table[name]))]
            for name in names
        }
        with self._hooked(
            prompt, interventions, readers=readers, grad=grad, engine=engine, state=[store]
        ) as run:
            logits = self._forward(prompt, run, last_logits)
        cache = ActivationCache(
            store, self.architecture.points, prompt.layouts, at=at, source=self.facts_later(),
            owner=self.parts_later(),
        )  # fmt: skip
        return logits, cache

    @answers_habits
    def run_with_hooks(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        fwd_hooks: FwdHooks = (),
        interventions: Interventions = (),
        grad: bool = False,
        engine: str = "hooks",
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a run in which functions see, and may replace, activations.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            fwd_hooks: `(name, fn)` pairs as in TransformerLens: the name may be a glob or a
                function of names, `fn(tensor, hook)` returns the replacement, or `None`;
                `hook.name` and `hook.layer()` say where. Edits in place count.
            interventions: What to change, before the functions are called.
            grad: Whether to record gradients.
            engine: As for `run`.

        Raises:
            VLMLensError: The prompt, a name or an intervention does not fit.
        """
        prompt = self.as_prompt(prompt, images)
        functions = self._named(fwd_hooks)
        with self._hooked(
            prompt, interventions, functions=functions, grad=grad, engine=engine
        ) as run:
            return self._forward(prompt, run)

    @answers_habits
    def generate(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        max_new_tokens: SupportsIndex | None = None,
        interventions: Interventions = (),
        names_filter: NamesFilter = None,
        positions: Position | int | Sequence[int] | None = None,
        scores: bool = False,
        engine: str = "hooks",
        **options: Any,
    ) -> Generation:
        """New tokens after a prompt, greedily unless `do_sample=True` is passed.

        Interventions at places of the prompt act where the prompt is read; those at `Generated()`
        act at each new token. What is read is what one `run_with_cache` of prompt and answer reads
        at the same places.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            max_new_tokens: How many, at the most; by default what the model's generation
                configuration says, or 20.
            interventions: What to change.
            names_filter: Points to read into the generation's `cache`, patterns among them; none
                by default.
            positions: At which places; by default `Last() + Generated()`, where each new token is
                predicted, so that row i is that of new token i.
            scores: Whether to keep the logits that each new token was chosen from.
            engine: As for `run`.
            **options: Passed to transformers' `generate`.

        Raises:
            VLMLensError: The prompt, an option or an intervention does not fit.
        """
        prompt = self.prompts.left_padded(self.as_prompt(prompt, images))
        composed = compose(interventions)
        model: Any = self.hf_model  # a GenerationMixin too, which its type does not say
        settings = GenerationSettings(model, self.tokenizer, max_new_tokens, options)
        if positions is not None and names_filter is None:
            raise PromptError("positions= says where points are read: give names_filter= too.")
        at = PREDICTING if positions is None else as_position(positions)
        table, steps = self.architecture.points, settings.max_new_tokens
        read: list[str] = []
        if names_filter is not None:
            new = at.at_generated
            read = names_to_read(table, prompt, names_filter, at, generates=new)
        reader = GenerationReader(table, prompt, read, at, steps)
        logits = GenerationReader(table, prompt, ["hook_logits"] * scores, PREDICTING, steps)
        if self._active or len(composed) or read or scores:
            settings.check_places()
        settings.check_values()
        self.prompts.check_length(prompt.inputs, settings.max_new_tokens - 1)
        readers = reader.handlers()
        for name, more in logits.handlers().items():
            readers.setdefault(name, []).extend(more)
        state = [part for one in (reader, logits) for part in (one.kept, one.sinks, one.until)]
        with self._hooked(
            prompt, composed, steps=steps, readers=readers, engine=engine, state=state
        ) as run:
            sequences = run.engine.call("generate", **prompt.inputs, **settings.options)
            tokens = sequences[:, prompt.length :]
            if tokens.shape[1] == 1:  # every row ended at once: there was nothing to act on
                run.counters[:] = [c for c in run.counters if not c.at_generated]
        cache = None
        if read:
            cache = ActivationCache(
                reader.values(), table, prompt.layouts, at=at, source=self.facts_later(),
                owner=self.parts_later(),
            )  # fmt: skip
        found = logits.values().get("hook_logits")
        return Generation(tokens, self._decoded(tokens), cache, found)

    def _decoded(self, tokens: Tensor) -> tuple[str, ...]:
        if self.tokenizer is None:
            return ()
        return tuple(self.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    # ------------------------------------------------------------------ contexts

    @contextmanager
    def intervening(self, interventions: Interventions) -> Iterator[Self]:
        """While open, every run of this HookedVLM in this thread or task makes these first."""
        with opened(self, compose(interventions)):
            yield self

    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[Self]:
        """While open, every run of this HookedVLM in this thread or task calls these functions.

        A function that itself runs this model would be called by that run too, and is refused then.

        Args:
            fwd_hooks: As for `run_with_hooks`.
        """
        with opened(self, self._named(fwd_hooks)):
            yield self

    @contextmanager
    def reusing_pictures(self, store: PictureStore | None = None) -> Iterator[Self]:
        """While open, `run` and `run_with_cache` compute each distinct picture's features once.

        Pictures are told apart by their pixels as the model reads them. Runs that read or change
        tower or projector, that record gradients, or whose family's pictures depend on each other
        compute them as ever. Logits equal those of other runs up to rounding, because pictures are
        computed in other batches.

        Args:
            store: One of `picture_store`, which outlives the context; a new one by default.
        """
        with opened(self, store or self._pictures or self.picture_store()):
            yield self

    def picture_store(self) -> PictureStore:
        """A store of pictures' features for `reusing_pictures`."""
        return PictureStore(self.hf_model, self.family, self.architecture)

    @property
    def _pictures(self) -> PictureStore | None:
        """The store of pictures that is open, if one is."""
        return next((one for one in open_for(self) if isinstance(one, PictureStore)), None)

    @property
    def _active(self) -> tuple[Composed | tuple, ...]:
        """The interventions and the functions that are open, in order."""
        return tuple(one for one in open_for(self) if not isinstance(one, PictureStore))

    def _named(self, fwd_hooks: FwdHooks) -> tuple[tuple[list[str], Callable], ...]:
        """Functions with the points that they are called at."""
        wanted = (
            "fwd_hooks= is a list of pairs (name, function), [('hook_embed', fn)]; it got {!r:.60}."
        )
        if isinstance(fwd_hooks, str) or not isinstance(fwd_hooks, Iterable):
            raise InterventionError(wanted.format(fwd_hooks))
        pairs = list(fwd_hooks)
        for pair in pairs:
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InterventionError(wanted.format(pair))
            if not callable(pair[1]):
                raise InterventionError(wanted.format(pair))
        return tuple((self.architecture.points.match(names), fn) for names, fn in pairs)

    @contextmanager
    def _hooked(
        self,
        prompt: Prompt,
        interventions: Interventions,
        *,
        functions: Sequence[tuple[list[str], Callable]] = (),
        readers: Mapping[str, list[Handler]] | None = None,
        grad: bool | None = None,
        steps: int = 1,
        engine: str = "hooks",
        state: Sequence[dict[str, Any]] = (),
    ) -> Iterator[_Open]:
        """The model with handlers on: contexts' first, then the run's own, then readers."""
        points, run_of = self.architecture.points, engine_named(engine)
        target = Target(points, prompt.layouts, lambda: self.facts)
        handlers: dict[str, list[Handler]] = {}
        counters: list[Counter] = []
        sources: list[tuple[str, Handler]] = []
        for active in [*self._active, compose(interventions), tuple(functions)]:
            if isinstance(active, Composed):
                check_gets_gradient(active, grad)
                added, read, counted = op_handlers(active, target, steps=steps)
                sources += read
                counters += counted
            else:
                added = []
                for names, fn in active:
                    check_fires(points, prompt, names)
                    handler = user_handler(fn)
                    added += [(name, handler) for name in names]
            for name, handler in added:
                handlers.setdefault(name, []).append(handler)
        for name, handler in sources:
            handlers.setdefault(name, []).append(handler)
        for name, more in (readers or {}).items():
            handlers.setdefault(name, []).extend(more)
        hooked = run_of(self.hf_model, points, handlers)
        hooked.state = [*(counter.tally for counter in counters), *state]
        with torch.set_grad_enabled(bool(grad)), hooked:
            yield _Open(counters, tuple(handlers), bool(grad), hooked)
        for counter in counters:
            counter.check()
        check_fired(points, prompt, handlers, hooked.fired)

    def _forward(self, prompt: Prompt, run: _Open, last_logits: int | None = None) -> Tensor:
        inputs: Mapping[str, Any] = prompt.inputs
        points = self.architecture.points
        if self._pictures and not run.grad and all(points[n].space == "text" for n in run.watched):
            inputs = self._pictures.inputs_for(prompt)
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        if last_logits and "logits_to_keep" in signature(self.hf_model.forward).parameters:
            options["logits_to_keep"] = last_logits
        return run.engine.call(**inputs, **options).logits

    def __call__(self, prompt: Promptable, images: Pictures = None, **options: Any) -> Tensor:
        """Logits at every position, as `run` gives them."""
        return self.run(prompt, images, **options)


__all__ = ["HookedModel"]
