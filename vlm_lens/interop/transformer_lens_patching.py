"""TransformerLens's `patching` module on a prompt with pictures.

Its functions run `model.run_with_hooks(corrupted_tokens, fwd_hooks=...)`: tokens alone, so that a
bridge runs a prompt without its pictures and no word is said. Here what they take for the model
runs the prompt as a whole, on the user's own model, by its names. Two of its faults (version 4.3)
go with that: a write at `resid_mid` reaches the stream, and one at the layer of a tower that is
read reaches the projector.

```
from transformer_lens import patching
model = patching_model(vlm, corrupt)
patching.get_act_patch_resid_pre(model, model.tokens, clean_cache, metric)      # [layer, pos]
```
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import ModelError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.prompts.prompt import Prompt


class PatchingError(ModelError, AttributeError):
    """What a tool of TransformerLens asks of a model that is not served here."""


class PatchingModel:
    """A model and one prompt, as TransformerLens's `patching` takes a model.

    Attributes:
        tokens: The prompt's tokens, `[batch, pos]`: what its functions take as the corrupted run.
        cfg: Sizes of the language model, and its device.
    """

    def __init__(self, vlm: HookedModel, prompt: Prompt):
        self._vlm, self._prompt = vlm, prompt
        self.tokens: Tensor = prompt.inputs["input_ids"]
        sizes = vlm.cfg
        self.cfg = SimpleNamespace(
            n_layers=sizes.n_layers, n_heads=sizes.n_heads,
            n_key_value_heads=sizes.n_key_value_heads, device=vlm.device,
        )  # fmt: skip

    def run_with_hooks(
        self, tokens: Tensor, fwd_hooks: Sequence[tuple[str, Any]] = (), **options: Any
    ) -> Tensor:
        """Logits of the prompt under hooks.

        Raises:
            VLMLensError: Other tokens than the prompt's, an option, or a name of no point.
        """
        own = self.tokens
        if not isinstance(tokens, Tensor) or not torch.equal(tokens.to(own), own):
            raise ModelError(
                "These are not the tokens of the prompt that this model was made of: give its "
                ".tokens, or make one of the other prompt, patching_model(vlm, prompt)."
            )
        if options:
            raise ModelError(f"A run of a prompt as a whole takes no {', '.join(options)}.")
        return self._vlm.run_with_hooks(self._prompt, fwd_hooks=list(fwd_hooks))

    def __getattr__(self, name: str) -> Any:
        raise PatchingError(
            f"{type(self).__name__} has no {name}: it serves the functions of TransformerLens's "
            "patching that hook one run. Paths are patched by pair.patch_paths(vlm, ...)."
        )


def patching_model(vlm: HookedModel, prompt: Any) -> PatchingModel:
    """What TransformerLens's `patching` functions take as their model, pictures included.

    Args:
        vlm: The model.
        prompt: The corrupted run: a Prompt, text, or a processor's output. The clean run's cache,
            `vlm.run_with_cache(clean)[1]`, has as many positions.

    Raises:
        VLMLensError: No prompt.
    """
    return PatchingModel(vlm, vlm.as_prompt(prompt))


__all__ = ["PatchingError", "PatchingModel", "patching_model"]
