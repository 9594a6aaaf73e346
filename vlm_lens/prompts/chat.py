"""Conversations in the form that a model was trained on, by its processor's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

from PIL import Image

from vlm_lens.errors import PromptError, near_matches
from vlm_lens.families import Family
from vlm_lens.pictures import as_picture
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tokens import IMAGE, tokenizer_of

__all__ = ["ChatTemplate", "Message", "write_chat"]

Message = Mapping[str, Any]
_PICTURE_KEYS = ("image", "path", "url", "base64", "image_url")


def write_chat(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    processor: Any,
    family: Family,
    *,
    add_generation_prompt: bool | None = None,
    **options: Any,
) -> list[RawPrompt]:
    """Conversations as prompts, `<image>` at each picture's place.

    Args:
        messages: A conversation, or a list of them, in any form that transformers documents.
        processor: Whose chat template is used.
        family: The model's family.
        add_generation_prompt: Whether the answer's beginning is appended; by default where the
            last message is not to be continued.
        **options: Passed to the template: `tools`, `documents`, `chat_template`,
            `continue_final_message`, and the template's own, such as `enable_thinking`.

    Raises:
        PromptError: No chat template, what is no conversation, or what the template refuses.
    """
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer_of(processor), "chat_template", None
    )
    if not template and not options.get("chat_template"):
        raise PromptError(
            "This model's processor has no chat template: write the prompt out and use vlm.prompt, "
            "or pass the template, chat_template=."
        )
    continues = options.get("continue_final_message", False)
    if add_generation_prompt is None:
        add_generation_prompt = not continues
    if add_generation_prompt and continues:
        raise PromptError(
            "continue_final_message goes on with the last message, add_generation_prompt begins a "
            "new one: give one of them."
        )
    if "tokenize" in options or "return_tensors" in options:
        raise PromptError("chat makes a Prompt: leave tokenize= and return_tensors= out.")
    conversations = _conversations(messages)
    _check_options(options, options.get("chat_template") or template, processor)
    raws = []
    for conversation in conversations:
        pictures: list[Image.Image] = []
        turns = [_turn(message, pictures, family) for message in conversation]
        try:
            text = processor.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except Exception as error:  # templates raise whatever they like, in jinja
            raise PromptError(f"The chat template refuses this conversation: {error}") from error
        if pictures:
            text = text.replace(family.placeholder(processor), IMAGE)
        raws.append(RawPrompt(text, tuple(pictures)))
    return raws


def _check_options(options: Mapping[str, Any], template: Any, processor: Any) -> None:
    """Refuses options that neither transformers nor the template reads: nobody would see them."""
    takes = {
        name
        for writer in (processor, tokenizer_of(processor))
        for name in signature(writer.apply_chat_template).parameters
    }
    words = set(re.findall(r"\w+", str(template)))  # of a template, or of several by name
    for name in options:
        if name not in takes and name not in words:
            near = near_matches(name, [*takes - {"self", "kwargs"}, *words])
            raise PromptError(f"This chat template reads no option {name!r}.{near}")


def _conversations(messages: Any) -> list[list[Message]]:
    if isinstance(messages, Mapping):
        messages = [messages]
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(
            'A conversation is a list of messages, [{"role": "user", "content": "..."}]; it got '
            f"{messages!r:.80}. A text alone is vlm.prompt's."
        )
    if all(isinstance(m, Sequence) and not isinstance(m, str) for m in messages):
        return [c for one in messages for c in _conversations(one)]
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise PromptError(
                'A message is {"role": "user" or "assistant" or "system", "content": ...}, not '
                f"{message!r:.80}."
            )
    return [list(messages)]


def _turn(message: Message, pictures: list[Image.Image], family: Family) -> dict[str, Any]:
    """A message without its pictures, which are appended to `pictures`."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if isinstance(content, Mapping | Image.Image):
        content = [content]
    if not isinstance(content, Sequence):
        raise PromptError(
            'The content of a message is a text or a list of parts, [{"type": "text", "text": '
            f'"..."}}], not {content!r:.80}.'
        )
    parts = []
    for part in content:
        if isinstance(part, Image.Image):
            part = {"type": "image", "image": part}
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            if not family.takes_images:
                raise PromptError(f"{family.name} is a language model without vision.")
            pictures.append(_picture(part))
            parts.append({"type": "image"})
        elif kind == "text":
            parts.append(dict(part))
        else:
            raise PromptError(
                f'A part of a message is {{"type": "text", "text": "..."}} or {{"type": "image", '
                f'"image": picture}}, not {part!r:.80}. Videos go to '
                "vlm.prompt(text, videos=[frames]), and sound is not read."
            )
    return {**message, "content": parts}


def _picture(part: Mapping[str, Any]) -> Image.Image:
    for key in _PICTURE_KEYS:
        given = part.get(key)
        if isinstance(given, Mapping):  # {"type": "image_url", "image_url": {"url": ...}}
            given = given.get("url")
        if given is not None:
            if key == "base64":
                given = f"data:{given}"
            return as_picture(given, "A picture of the conversation")
    raise PromptError(
        'A part of type "image" holds its picture: {"type": "image", "image": picture}.'
    )


def starts_with_bos(text: str, processor: Any) -> bool:
    """Whether a text begins with the tokenizer's first token, written out."""
    bos = getattr(tokenizer_of(processor), "bos_token", None)
    return bos is not None and text.startswith(bos)


class Speaker(Protocol):
    """What a conversation is written for: a HookedVLM, or what else has these two."""

    family: Family
    processor: Any


@dataclass(frozen=True)
class ChatTemplate:
    r"""Writes examples as a conversation, by the chat template of a model's own processor.

    An input is what the user says, an output what the assistant answers; an open query ends where
    the assistant's answer begins. On Idefics2, for one (Luo et al. 2025, arXiv 2410.22330, Table
    10): `User: Greece<end_of_utterance>\nAssistant: Athens<end_of_utterance>\nUser:<image>...`. It
    stands wherever a `Template` does: `dataclasses.replace(task, template=ChatTemplate(vlm))`.

    Attributes:
        vlm: The HookedVLM whose form is used.

    Raises:
        PromptError: Its processor has no chat template.
    """

    vlm: Speaker

    def __post_init__(self) -> None:
        """Write one turn, so that a missing template is found at once."""
        self.build((), "x")

    def build(
        self,
        examples: Iterable[tuple[str | Image.Image, str]],
        query: str | Image.Image | None = None,
    ) -> RawPrompt:
        """Write the examples, then the open query.

        Args:
            examples: Pairs of input and output; an input is a text or a picture.
            query: The input left open, or None for examples only.

        Returns:
            The prompt.

        Raises:
            PromptError: An input is neither a text nor a picture.
        """
        turns: list[tuple[str, str | Image.Image]] = []
        for given, output in examples:
            turns += [("user", given), ("assistant", output)]
        if query is not None:
            turns.append(("user", query))
        messages = [{"role": role, "content": self._content(said)} for role, said in turns]
        [raw] = write_chat(
            messages, self.vlm.processor, self.vlm.family, add_generation_prompt=query is not None
        )
        return RawPrompt(self._without_bos(raw.text), raw.images)

    def _content(self, said: str | Image.Image) -> Any:
        if isinstance(said, Image.Image):
            return [{"type": "image", "image": said}]
        if not isinstance(said, str):
            raise PromptError(
                f"a turn is a text or a PIL picture, not {type(said).__name__}; "
                "open a file with PIL.Image.open"
            )
        # templates of language models take texts, those of processors lists of parts
        return [{"type": "text", "text": said}] if self.vlm.family.takes_images else said

    def _without_bos(self, text: str) -> str:
        """The text without the token that the tokenizer itself puts first."""
        tokenizer = tokenizer_of(self.vlm.processor)
        if starts_with_bos(text, tokenizer) and tokenizer.bos_token_id in tokenizer("x").input_ids:
            return text[len(tokenizer.bos_token) :]
        return text
