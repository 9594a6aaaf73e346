"""Plain language models: a HookedVLM with no vision points."""

from __future__ import annotations

import torch

from vlm_lens.families.parts.architecture import Architecture, assemble
from vlm_lens.families.parts.decoders import DECODERS, find_decoder
from vlm_lens.families.parts.family import Family
from vlm_lens.points.sites import InputSite

NO_VISION = dict.fromkeys(("vision.*", "projector.*"), "it is a language model without vision.")


class DecoderFamily(Family):
    """`...ForCausalLM` of the text models that are described."""

    name = "decoder"
    model_types = tuple(DECODERS)

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a `...ForCausalLM`."""
        decoder = find_decoder(model.config, "model")
        # Nothing is placed into the embeddings; the name exists so that one recipe runs on a model
        # and on its base language model.
        return assemble(
            model, f"{model.config.model_type} ({self.name})", decoder,
            InputSite(f"{decoder.stack.path}.0"), merged_doc="The first block's input",
            missing=NO_VISION,
        )  # fmt: skip
