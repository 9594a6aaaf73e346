"""`toy-mistral` and `toy-idefics2`: late fusion through a perceiver resampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics2.configuration_idefics2 import (
    Idefics2PerceiverConfig,
    Idefics2VisionConfig,
)
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from vlm_lens.zoo.train.configs import special_ids, text_sizes
from vlm_lens.zoo.train.curriculum import LANGUAGE, SEEING, VISION_LANGUAGE
from vlm_lens.zoo.train.organism import Organism

__all__ = ["Idefics2"]

_FAKE = "<fake_token_around_image>"
# A conversation is written as the questions and answers that the model was trained on.
_CHAT = (
    "{% for message in messages %}"
    "{{ 'Q:' if message['role'] == 'user' else 'A:' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ '\\n' if message['role'] == 'user' else '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


class Idefics2(Organism):
    """A SigLIP tower, a perceiver resampler and a Mistral with grouped queries."""

    name = "toy-idefics2"
    language_name = "toy-mistral"
    # Grouped queries learn the text more slowly than full attention.
    stages = (
        replace(LANGUAGE[0], steps=1300),
        *LANGUAGE[1:],
        *SEEING,
        replace(VISION_LANGUAGE, steps=2600),
    )
    seed = 1
    special_tokens = (_FAKE, "<image>", "<end_of_utterance>")
    seeing = ("model.vision_model", "model.connector")

    def language_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> MistralForCausalLM:
        """Build the Mistral."""
        torch.manual_seed(seed)
        return MistralForCausalLM(self._text_config(tokenizer))

    def model(
        self,
        tokenizer: PreTrainedTokenizerFast,
        language_model: nn.Module | None,
        seed: int,
    ) -> Idefics2ForConditionalGeneration:
        """Build the Idefics2: a fresh tower, projection and resampler on the Mistral."""
        config = Idefics2Config(
            text_config=self._text_config(tokenizer),
            vision_config=Idefics2VisionConfig(
                hidden_size=self.shape.vision_width,
                intermediate_size=self.shape.vision_mlp,
                num_hidden_layers=self.shape.vision_layers - 1,
                num_attention_heads=self.shape.vision_heads,
                image_size=self.shape.image_size,
                patch_size=self.shape.patch_size,
            ),
            perceiver_config=Idefics2PerceiverConfig(
                hidden_size=self.shape.width,
                resampler_n_latents=self.shape.latents,
                resampler_depth=2,
                resampler_n_heads=self.shape.heads,
                resampler_head_dim=self.shape.width // self.shape.heads,
                num_key_value_heads=self.shape.heads // 2,
            ),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
            **special_ids(tokenizer),
        )
        torch.manual_seed(seed)
        model = Idefics2ForConditionalGeneration(config)
        # Latents that begin equal, as transformers makes them, stay equal for ever.
        nn.init.normal_(model.model.connector.perceiver_resampler.latents)
        if language_model is not None:
            model.model.text_model.load_state_dict(language_model.model.state_dict())
            model.tie_weights()
        return model

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Idefics2Processor:
        """Build a processor that expands `<image>` to the resampler's latents."""
        side = self.shape.image_size
        images = Idefics2ImageProcessorPil(
            size={"shortest_edge": side, "longest_edge": side}, do_image_splitting=False
        )
        return Idefics2Processor(
            images, tokenizer, image_seq_len=self.shape.latents, chat_template=_CHAT
        )

    def pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pixels."""
        found = processor.image_processor([list(pictures)], return_tensors="pt")
        return found["pixel_values"][0].float()

    def image_inputs(self, pixels: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
        """Return pixels by prompt."""
        return {"pixel_values": pixels.unflatten(0, (rows, -1))}

    def picture(self, tokenizer: PreTrainedTokenizerFast, number: int) -> list[int]:
        """One token a latent, between two marks."""
        fake, image = tokenizer.convert_tokens_to_ids([_FAKE, "<image>"])
        return [fake, *[image] * self.shape.latents, fake]

    def _text_config(self, tokenizer: PreTrainedTokenizerFast) -> MistralConfig:
        return MistralConfig(
            **text_sizes(self.shape, tokenizer),
            num_key_value_heads=self.shape.heads // 2,
            sliding_window=None,
        )
