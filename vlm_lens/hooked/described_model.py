"""What a model is and what it reads: sizes, points, tokens, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

from vlm_lens.engine.logit_head import with_fitted_head
from vlm_lens.engine.obstacles import warn_if_training
from vlm_lens.errors import InterventionError, refuse_attribute
from vlm_lens.families import family_of
from vlm_lens.hooked.description import describe, describe_html, unembed_hash
from vlm_lens.hooked.habits import ATTRIBUTES, answers_habits
from vlm_lens.hooked.later import FactsLater, PartsLater
from vlm_lens.hooked.settings import check_settings, settings_of
from vlm_lens.hooked.sharded import as_sharded, is_sharded
from vlm_lens.hooked.stacks import Owner
from vlm_lens.hooked.unwrapped import as_model, check_processor
from vlm_lens.hooked.vocabulary import Vocabulary
from vlm_lens.interventions.base import Intervention, ModelFacts
from vlm_lens.points.config import HookedConfig
from vlm_lens.points.table import NamesFilter, PointTable
from vlm_lens.prompts.chat import Message
from vlm_lens.prompts.inputs import input_device, input_dtype
from vlm_lens.prompts.maker import Pictures, Promptable, PromptMaker, Texts
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.prompts.videos import Videos
from vlm_lens.storage.weights import weights_digest
from vlm_lens.stream.weights import Weights
from vlm_lens.tokens import string_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DescribedModel(Vocabulary, Weights):
    """A Hugging Face model with names for its parts, and prompts made for it.

    Arguments and errors are those of `HookedVLM`.
    """

    def __init__(self, hf_model: PreTrainedModel, processor: Any = None):
        check_processor(processor)
        self.hf_model = hf_model = as_model(hf_model)
        self.processor = processor
        self.family = family_of(hf_model.config)
        self.architecture = with_fitted_head(hf_model, self.family.architecture(hf_model))
        if is_sharded(hf_model):
            self.family, self.architecture = as_sharded(hf_model, self.family, self.architecture)
        self._settings = dict(settings_of(hf_model.config))
        warn_if_training(hf_model)

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
        return input_dtype(self.hf_model)

    def points(self, names: NamesFilter = "*") -> PointTable:
        """The points that a name, glob, list or function selects, as a table.

        Raises:
            PointError: Nothing matches.
        """
        return self.architecture.points.select(names)

    @property
    def facts(self) -> ModelFacts:
        """What a vector is checked against: name, sizes, and digests of its weights as they are."""
        head = unembed_hash(self.hf_model, self.architecture)
        found = weights_digest(self.hf_model)
        whole = (None, None) if found.unread else (found.text, found.signs)
        return replace(self._facts_unhashed, unembed_hash=head, weights=whole[0], signs=whole[1])

    def facts_later(self) -> Callable[[], ModelFacts]:
        """A function that gives its facts when it is called, for as long as the model is there."""
        return FactsLater(self._facts_unhashed, ref(self))

    def parts_later(self) -> Owner:
        """A function that gives model, parts and token ids, for as long as the model is there."""
        return PartsLater(ref(self))

    @property
    def _facts_unhashed(self) -> ModelFacts:
        dtype = str(self.dtype).removeprefix("torch.")
        return ModelFacts(self.name, self.cfg.n_layers, self.cfg.d_model, dtype=dtype)

    def to_str_tokens(self, text: str | Promptable) -> list[str]:
        """The tokens of a text, or of a prompt, as strings."""
        if isinstance(text, str) and "<image>" not in text:
            return list(string_tokens(self.tokenizer, self.to_tokens(text)))
        return list(self.as_prompt(text).layout.strings)

    # ------------------------------------------------------------------ prompts

    @property
    def prompts(self) -> PromptMaker:
        """The maker of this model's prompts."""
        return PromptMaker(self.hf_model, self.family, self.architecture, self.processor)

    @answers_habits
    def prompt(
        self,
        text: Texts,
        images: Pictures = None,
        *,
        videos: Videos = None,
        fps: float | None = None,
        add_special_tokens: bool = True,
    ) -> Prompt:
        """Text and pictures as tensors with coordinates.

        The processor gets the pictures as they are. A file is opened, and turned upright as its
        EXIF orientation asks; that of a PIL picture is not looked at, which a warning says.

        Args:
            text: A text or RawPrompt, or a list for a left-padded batch; `<image>` marks each
                picture's place, on every family.
            images: The pictures, PIL or paths of files, in reading order, or one list a text.
            videos: The videos, in reading order, each a list of frames (PIL or paths of pictures),
                all of which are read, or the path of a file that the processor reads; `<video>`
                marks each one's place.
            fps: How many frames of the videos a second takes, where that is known: then
                `layout.video[0].at(2.5)` is the frame at 2.5 seconds.
            add_special_tokens: Whether the tokenizer adds its own, such as `<s>`.

        Raises:
            PromptError: Pictures and placeholders do not match, or there is no processor.
        """
        return self.prompts.from_text(
            text, images, videos=videos, fps=fps, add_special_tokens=add_special_tokens
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        add_generation_prompt: bool | None = None,
        **options: Any,
    ) -> Prompt:
        """A conversation as a prompt, or several as a batch, by the model's own chat template.

        Args:
            messages: `[{"role": "user", "content": [{"type": "image", "image": picture},
                {"type": "text", "text": "..."}]}]`, or a list of such lists. Contents may be texts,
                and pictures PIL or paths.
            add_generation_prompt: Whether the answer's beginning is appended; it is by default,
                unless `continue_final_message` is asked.
            **options: Passed to the template: `tools`, `documents`, `chat_template`,
                `continue_final_message`, and the template's own, such as `enable_thinking`.

        Raises:
            PromptError: There is no chat template, or it refuses the conversation.
        """
        return self.prompts.from_chat(
            messages, add_generation_prompt=add_generation_prompt, **options
        )

    def as_prompt(self, prompt: Promptable, images: Pictures = None) -> Prompt:
        """A Prompt from whatever a user may give: one already made, text, or tensors.

        Raises:
            PromptError: A prompt made for another model, or what is no prompt.
            ModelError: A setting of the model that its parts were made from was changed.
        """
        if isinstance(images, Intervention):
            raise InterventionError("Interventions are given by name: interventions=.")
        check_settings(self.hf_model.config, self._settings)
        return self.prompts.of(prompt, images)

    if not TYPE_CHECKING:  # a type checker would take any attribute for known

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(type(self), name, ATTRIBUTES)

    @property
    def _told(self) -> tuple[Any, ...]:
        return self.name, self.hf_model, self.architecture, self.device, self.dtype

    def __repr__(self) -> str:
        return describe(*self._told)

    def _repr_html_(self) -> str:
        return describe_html(*self._told)


__all__ = ["DescribedModel"]
