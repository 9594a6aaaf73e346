"""Examples and a query as turns of a conversation, in the form that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.families import Family
from vlm_lens.prompts.prompt import from_chat
from vlm_lens.prompts.template import IMAGE, RawPrompt

__all__ = ["ChatTemplate"]


class Speaker(Protocol):
    """What a conversation is written for: a HookedVLM, or what else has these three."""

    family: Family
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""


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
        text, images = from_chat(
            messages, self.vlm.processor, add_generation_prompt=query is not None
        )
        if images:
            text = text.replace(self.vlm.family.placeholder(self.vlm.processor), IMAGE)
        return RawPrompt(self._without_bos(text), tuple(images))

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
        tokenizer = self.vlm.tokenizer
        bos = getattr(tokenizer, "bos_token", None)
        if bos and text.startswith(bos) and tokenizer.bos_token_id in tokenizer("x")["input_ids"]:
            return text[len(bos) :]
        return text
