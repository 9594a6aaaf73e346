"""How a generation runs, read in one place, and what it gives back."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from vlm_lens.errors import InterventionError, PromptError, near_matches
from vlm_lens.hooked.cache import ActivationCache

NEW_TOKENS = 20  # as transformers generates by default

# What makes transformers return more than tokens, which a Generation does not hold.
_MORE_OPTIONS = {"tokenizer", "assistant_tokenizer", "logits_to_keep"}  # of no signature
_MORE_OUTPUT = ("output_attentions", "output_hidden_states", "output_scores", "output_logits",
                "return_dict_in_generate")  # fmt: skip
# What decides which rows and positions the model reads in a step, and from where on that is not
# one row a prompt, the prompt once, then one new token after another.
_ROWS = {"num_return_sequences": 1, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0}
_STEPS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
_PROMPT = ("inputs", "input_ids", "inputs_embeds", "position_ids", "past_key_values")
_WITHOUT_VALUE = {"guidance_scale": 1, **_ROWS}


@dataclass(frozen=True, eq=False)
class Generation:
    """New tokens of each row of a prompt.

    Attributes:
        tokens: The new tokens, `[batch, new]`; rows that ended early are padded.
        text: The text of each row, special tokens left out; empty without a tokenizer.
        cache: What was read at the places asked, `[batch, rows, ...]`; patterns have a key for
            each position of prompt and answer. In rows that ended early the last places are those
            of padding. `None` where nothing was asked.
        scores: The logits that each new token was chosen from, before temperature and the like,
            `[batch, new, d_vocab]`; `None` unless asked.
    """

    tokens: Tensor
    text: tuple[str, ...] = ()
    cache: ActivationCache | None = None
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return "\n".join(self.text)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.text[:8])) + (", ..." if len(self.text) > 8 else "")
        return f"Generation({shown or self.tokens.tolist()})"


class GenerationSettings:
    """Everything that decides how `generate` runs: what was asked over what the model brings.

    Args:
        model: The model, whose `generation_config` says what is not asked.
        tokenizer: Its tokenizer, if any.
        max_new_tokens: How many tokens; `None` for the configurations' number, or 20.
        asked: Options of transformers' `generate`, `generation_config` among them.

    Raises:
        PromptError: An option that transformers does not have, or that would be ignored.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_new_tokens: SupportsIndex | None,
        asked: Mapping[str, Any],
    ):
        self._own: GenerationConfig = model.generation_config
        self._asked = {**_written(asked.get("generation_config")), **asked}
        self._asked.pop("generation_config", None)
        self._check_names(model)
        for option in _MORE_OUTPUT:
            if self._asked.pop(option, None):
                raise PromptError(
                    f"generate returns no output of transformers, so {option}= would be ignored: "
                    "names_filter='blocks.*.attn.hook_pattern' reads patterns, other names other "
                    "activations, and scores=True the logits of each new token."
                )
        if not self._asked.get("do_sample"):
            self._asked |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        self.max_new_tokens = self._number(max_new_tokens)
        self._asked["max_new_tokens"] = self.max_new_tokens
        if self["pad_token_id"] is None:
            self._asked["pad_token_id"] = getattr(tokenizer, "pad_token_id", None) or 0
        if self["stop_strings"]:
            self._asked.setdefault("tokenizer", tokenizer)
        if self["cache_implementation"]:
            self._asked.setdefault("disable_compile", True)  # hooks do not fire in compiled code

    def __getitem__(self, name: str) -> Any:
        """What an option is set to, asked or brought by the model."""
        return self._asked[name] if name in self._asked else getattr(self._own, name, None)

    @property
    def options(self) -> dict[str, Any]:
        """What is passed to transformers' `generate`."""
        return {**self._asked, **dict.fromkeys((o for o in _MORE_OUTPUT if self[o]), False)}

    def check_places(self) -> None:
        """Refuses what would move an intervention away from the places that it names.

        Raises:
            InterventionError: Several samples a prompt, several tokens a step, a prompt read in
                pieces, or a second prompt.
        """
        reasons = {
            **dict.fromkeys(_ROWS, "repeats the rows of the prompt"),
            **dict.fromkeys(_STEPS, "reads several tokens in a step and takes some of them back"),
            "prefill_chunk_size": "reads the prompt in pieces",
            "guidance_scale": "runs the model on a second prompt",
            "custom_generate": "brings a loop of its own",
            "token_healing": "rewrites the end of the prompt",
        }
        for option, what in reasons.items():
            value = self[option]
            if value in (None, False, _WITHOUT_VALUE.get(option)):
                continue
            shown = value if isinstance(value, int | float | str) else "..."
            raise InterventionError(
                f"{option}={shown} {what}, so an intervention's places would not be those it "
                f"names: generate with one sequence a row, {option}=None."
            )

    def _number(self, asked: SupportsIndex | None) -> int:
        if self._asked.get("max_length") is not None and asked is None:
            raise PromptError("Say how many new tokens, max_new_tokens=, not max_length=.")
        self._asked.pop("max_length", None)
        number = self["max_new_tokens"] if asked is None else asked
        try:
            number = NEW_TOKENS if number is None else operator.index(number)
        except TypeError:
            raise PromptError(f"max_new_tokens is a whole number, not {number!r}.") from None
        if number < 1:
            raise PromptError(f"max_new_tokens must be at least 1, not {number}.")
        return number

    def check_values(self) -> None:
        """Refuses values that transformers would refuse, or fail on, later.

        Raises:
            PromptError: With what transformers says.
        """
        for option in ("num_beams", "num_return_sequences", "temperature"):
            if self[option] is not None and self[option] <= 0:
                raise PromptError(f"{option} must be positive, not {self[option]}.")
        settings = GenerationConfig()
        known = settings.to_dict()
        try:
            settings.update(**{name: self[name] for name in known if self[name] is not None})
        except (ValueError, TypeError) as error:
            raise PromptError(f"transformers refuses these options: {error}") from error

    def _check_names(self, model: Any) -> None:
        reads = set(inspect.signature(model.forward).parameters) - {"use_cache", "logits_to_keep"}
        # a model whose own generate takes any keyword hands them on to that of transformers
        both = (model.generate, GenerationMixin.generate)
        takes = {name for one in both for name in inspect.signature(one).parameters}
        takes -= {"inputs", "kwargs", "generate_kwargs", "self"}
        settings = set(GenerationConfig().to_dict())
        for option in self._asked:
            if option in reads - settings or option in _PROMPT:
                raise PromptError(
                    f"{option} is a part of the prompt: pass the processor's output, "
                    "vlm.generate({**inputs}), and leave it out of the options."
                )
            if option not in takes | settings | _MORE_OPTIONS:
                known = sorted(takes | settings)
                raise PromptError(
                    f"generate has no option {option!r}.{near_matches(option, known)} It takes "
                    "those of transformers' generate."
                )


def _written(config: GenerationConfig | None) -> dict[str, Any]:
    """What a configuration says, without what it leaves open."""
    if config is None:
        return {}
    if not isinstance(config, GenerationConfig):
        raise PromptError(
            f"generation_config is a transformers.GenerationConfig, not {type(config).__name__}: "
            "pass options themselves as keywords."
        )
    known = GenerationConfig().to_dict().keys() - {"_from_model_config", "transformers_version"}
    values = {name: getattr(config, name, None) for name in known}
    return {name: value for name, value in values.items() if value is not None}
