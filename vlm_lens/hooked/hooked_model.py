"""A Hugging Face model with named activation points, which one run reads or changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from vlm_lens.engine.handlers import Counter, op_handlers, read_handler, user_handler
from vlm_lens.engine.hooks import Handler, HookedRun
from vlm_lens.engine.picture_store import PictureStore
from vlm_lens.errors import InterventionError, PromptError
from vlm_lens.families import family_of
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.hooked.description import describe, unembed_hash
from vlm_lens.hooked.device import input_device
from vlm_lens.hooked.generation import Generation
from vlm_lens.hooked.request import check_fires, keeper, names_to_read
from vlm_lens.hooked.vocabulary import Vocabulary
from vlm_lens.interventions.base import Composed, Intervention, ModelFacts, Target, compose
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.config import HookedConfig
from vlm_lens.points.table import NamesFilter, PointTable
from vlm_lens.prompts.prompt import (
    Prompt,
    as_raw,
    from_chat,
    from_tensors,
    from_text,
    warn_if_training,
)
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tokens import string_tokens

Promptable = Any  # a Prompt, text(s), RawPrompt(s), or a processor's own output
Texts = str | RawPrompt | Sequence[str | RawPrompt]
Pictures = Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | Image.Image | None
Interventions = Intervention | Iterable[Intervention] | None
FwdHooks = Sequence[tuple[NamesFilter, Callable]]


@dataclass(frozen=True)
class _Open:
    """A run that is about to happen: counters of its writes, points watched, gradients or not."""

    counters: list[Counter]
    watched: tuple[str, ...]
    grad: bool


class HookedModel(Vocabulary):
    """Runs of a model with hooks; `HookedVLM` adds what is built on them.

    What measures, sweeps and reads many prompts takes this class, so that `HookedVLM` can offer it
    as a method.

    Args:
        hf_model: A `LlavaForConditionalGeneration`, `LlamaForCausalLM`, ... of a registered family.
        processor: Its processor (a tokenizer for a plain language model). Without one, prompts
            must be a processor's own output.

    Raises:
        ModelError: A model of a family that is not registered.
    """

    def __init__(self, hf_model: nn.Module, processor: Any = None):
        self.hf_model = hf_model
        self.processor = processor
        self.family = family_of(hf_model.config)
        self.architecture = self.family.architecture(hf_model)
        self._active: list[Composed | tuple] = []
        self._pictures: PictureStore | None = None
        warn_if_training(hf_model)

    # ------------------------------------------------------------------ what the model is

    @cached_property
    def name(self) -> str:
        """The name under which it was loaded."""
        return self.cfg.model_name

    @property
    def cfg(self) -> HookedConfig:
        """Its sizes: `n_layers`, `d_model`, `n_heads`, `d_head`, `d_vocab`, and `vision`'s."""
        return self.architecture.cfg

    @property
    def device(self) -> torch.device:
        """The device that takes the tokens."""
        return input_device(self.hf_model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its activations."""
        return self.hf_model.dtype

    def points(self, names: NamesFilter = "*") -> PointTable:
        """The points that a name, glob, list or function selects, as a table.

        Raises:
            PointError: Nothing matches.
        """
        return self.architecture.points.select(names)

    @cached_property
    def facts(self) -> ModelFacts:
        """What a vector is checked against: name, layers, width, hash of the unembedding."""
        head = unembed_hash(self.hf_model, self.architecture)
        return ModelFacts(self.name, self.cfg.n_layers, self.cfg.d_model, head)

    def to_str_tokens(self, text: str | Promptable) -> list[str]:
        """The tokens of a text, or of a prompt, as strings."""
        if isinstance(text, str) and "<image>" not in text:
            return list(string_tokens(self.tokenizer, self.to_tokens(text)))
        return list(self.as_prompt(text).layout.strings)

    # ------------------------------------------------------------------ prompts

    def prompt(
        self, text: Texts, images: Pictures = None, *, add_special_tokens: bool = True
    ) -> Prompt:
        """Text and pictures as tensors with coordinates.

        Args:
            text: A text or RawPrompt, or a list for a left-padded batch; `<image>` marks each
                picture's place, on every family.
            images: The pictures, in reading order, or one list a text.
            add_special_tokens: Whether the tokenizer adds its own, such as `<s>`.

        Raises:
            PromptError: Pictures and placeholders do not match, or there is no processor.
        """
        text, images = as_raw(text, images)
        return from_text(
            text, images, family=self.family, arch=self.architecture, model=self.hf_model,
            processor=self.processor, device=self.device, add_special_tokens=add_special_tokens,
        )  # fmt: skip

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> Prompt:
        """A conversation as a prompt, by the processor's own chat template.

        Args:
            messages: `[{"role": "user", "content": [{"type": "image", "image": picture},
                {"type": "text", "text": "..."}]}]`.
            add_generation_prompt: Whether the answer's beginning is appended.

        Raises:
            PromptError: The processor has no chat template.
        """
        text, images = from_chat(
            messages, self.processor, add_generation_prompt=add_generation_prompt
        )
        if images:
            text = text.replace(self.family.placeholder(self.processor), "<image>")
        bos = getattr(self.tokenizer, "bos_token", None)
        return self.prompt(
            text, images or None, add_special_tokens=not (bos and text.startswith(bos))
        )

    def as_prompt(self, prompt: Promptable, images: Pictures = None) -> Prompt:
        """A Prompt from whatever a user may give: one already made, text, or tensors.

        Raises:
            PromptError: A prompt made for another model, or tensors that are no prompt.
        """
        if isinstance(prompt, Prompt | Mapping) and images is not None:
            raise PromptError("A prompt already made brings its own pictures: leave images= out.")
        if isinstance(prompt, Prompt):
            if prompt.made_for != self.cfg:
                raise PromptError(
                    f"This prompt was made for {prompt.made_for.model_name} "
                    f"({prompt.made_for.family}), not for {self.cfg.model_name} "
                    f"({self.cfg.family}): make it again with this model's prompt()."
                )
            return prompt
        if isinstance(prompt, Mapping):
            return from_tensors(
                prompt, family=self.family, arch=self.architecture, model=self.hf_model,
                processor=self.processor, device=self.device,
            )  # fmt: skip
        return self.prompt(prompt, images)

    # ------------------------------------------------------------------ runs

    def run(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        interventions: Interventions = (),
        grad: bool = False,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            interventions: What to change.
            grad: Whether to record gradients.

        Raises:
            VLMLensError: The prompt or an intervention does not fit.
        """
        prompt = self.as_prompt(prompt, images)
        with self._hooked(prompt, interventions, grad=grad) as run:
            return self._forward(prompt, run)

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

        Raises:
            VLMLensError: The prompt, a point or an intervention does not fit.
        """
        if last_logits is not None and last_logits < 1:
            raise PromptError(f"last_logits must be at least 1, not {last_logits}.")
        prompt = self.as_prompt(prompt, images)
        at = None if positions is None else as_position(positions)
        names = names_to_read(self.architecture.points, prompt, names_filter, at)
        store: dict[str, Tensor] = {}
        keep = keeper(at, prompt, device)
        readers = {name: [read_handler(store, keep)] for name in names}
        with self._hooked(prompt, interventions, readers=readers, grad=grad) as run:
            logits = self._forward(prompt, run, last_logits)
        cache = ActivationCache(
            store, self.architecture.points, prompt.layouts, at=at, source=self.name
        )
        return logits, cache

    def run_with_hooks(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        fwd_hooks: FwdHooks = (),
        interventions: Interventions = (),
        grad: bool = False,
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

        Raises:
            VLMLensError: The prompt, a name or an intervention does not fit.
        """
        prompt = self.as_prompt(prompt, images)
        with (
            self.intervening(interventions),
            self.hooks(fwd_hooks),
            self._hooked(prompt, (), grad=grad) as run,
        ):
            return self._forward(prompt, run)

    def generate(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        max_new_tokens: int,
        interventions: Interventions = (),
        **options: Any,
    ) -> Generation:
        """New tokens after a prompt, greedily unless `do_sample=True` is passed.

        Interventions at places of the prompt act where the prompt is read; those at `Generated()`
        act at each new token.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            max_new_tokens: How many, at the most.
            interventions: What to change.
            **options: Passed to transformers' `generate`.

        Raises:
            VLMLensError: The prompt or an intervention does not fit.
        """
        if max_new_tokens < 1:
            raise PromptError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        if options.get("return_dict_in_generate"):
            raise PromptError("generate returns a Generation: leave return_dict_in_generate out.")
        prompt, interventions = self.as_prompt(prompt, images), compose(interventions)
        for option in ("num_beams", "num_return_sequences"):
            many = options.get(option, getattr(self.hf_model.generation_config, option, 1)) or 1
            if many > 1 and (self._active or len(interventions)):
                raise InterventionError(
                    f"{option}={many} repeats the rows of the prompt, so an intervention's places "
                    "would not be those it names: generate with one sequence a row."
                )
        settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}
        if not options.get("do_sample"):
            settings |= {"temperature": None, "top_p": None, "top_k": None}
        config = self.hf_model.generation_config
        if config.pad_token_id is None:
            settings["pad_token_id"] = getattr(self.tokenizer, "pad_token_id", None) or 0
        with self._hooked(prompt, interventions, steps=max_new_tokens) as run:
            sequences = self.hf_model.generate(**prompt.inputs, **{**settings, **options})
            tokens = sequences[:, prompt.length :]
            if tokens.shape[1] == 1:  # every row ended at once: there was nothing to act on
                run.counters[:] = [c for c in run.counters if not c.at_generated]
        text = () if self.tokenizer is None else tuple(
            self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        )  # fmt: skip
        return Generation(tokens, text)

    # ------------------------------------------------------------------ contexts

    @contextmanager
    def intervening(self, interventions: Interventions) -> Iterator[Self]:
        """While open, every run of this HookedVLM makes these interventions first."""
        self._active.append(compose(interventions))
        try:
            yield self
        finally:
            self._active.pop()

    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[Self]:
        """While open, every run of this HookedVLM calls these functions; see `run_with_hooks`."""
        self._active.append(
            tuple((self.architecture.points.match(names), fn) for names, fn in fwd_hooks)
        )
        try:
            yield self
        finally:
            self._active.pop()

    @contextmanager
    def reusing_pictures(self) -> Iterator[Self]:
        """While open, `run` and `run_with_cache` compute each distinct picture's features once.

        Pictures are told apart by their pixels as the model reads them. Runs that read or change
        tower or projector, that record gradients, or whose family's pictures depend on each other
        compute them as ever. Logits equal those of other runs up to rounding, because pictures are
        computed in other batches.
        """
        before = self._pictures
        self._pictures = before or PictureStore(self.hf_model, self.family, self.architecture)
        try:
            yield self
        finally:
            self._pictures = before

    @contextmanager
    def _hooked(
        self,
        prompt: Prompt,
        interventions: Interventions,
        *,
        readers: Mapping[str, list[Handler]] | None = None,
        grad: bool = False,
        steps: int = 1,
    ) -> Iterator[_Open]:
        """The model with handlers on: contexts' first, then interventions, then readers."""
        target = Target(self.architecture.points, prompt.layouts, self.facts)
        handlers: dict[str, list[Handler]] = {}
        counters: list[Counter] = []
        for active in [*self._active, compose(interventions)]:
            if isinstance(active, Composed):
                added, counted = op_handlers(active, target, steps=steps)
                counters += counted
            else:
                added = []
                for names, fn in active:
                    check_fires(self.architecture.points, prompt, names)
                    handler = user_handler(fn)
                    added += [(name, handler) for name in names]
            for name, handler in added:
                handlers.setdefault(name, []).append(handler)
        for name, more in (readers or {}).items():
            handlers.setdefault(name, []).extend(more)
        with (
            torch.set_grad_enabled(grad),
            HookedRun(self.hf_model, self.architecture.points, handlers),
        ):
            yield _Open(counters, tuple(handlers), grad)
        for counter in counters:
            counter.check()

    def _forward(self, prompt: Prompt, run: _Open, last_logits: int | None = None) -> Tensor:
        inputs: Mapping[str, Any] = prompt.inputs
        points = self.architecture.points
        if self._pictures and not run.grad and all(points[n].space == "text" for n in run.watched):
            inputs = self._pictures.inputs_for(prompt)
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        if last_logits and "logits_to_keep" in signature(self.hf_model.forward).parameters:
            options["logits_to_keep"] = last_logits
        return self.hf_model(**inputs, **options).logits

    def __repr__(self) -> str:
        return describe(self.name, self.hf_model, self.architecture, self.device)


__all__ = ["HookedModel"]
