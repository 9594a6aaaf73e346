"""Each distinct picture's features computed once, however many prompts show it."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.families import Architecture, Family
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.storage.identity import module_settings
from vlm_lens.storage.weights import weights_state

_LIMIT = 512 << 20  # bytes of features stored


class PictureStore:
    """Features of pictures by their content; those unused the longest are forgotten first.

    Features count for the model as it is: where a weight outside the text model's blocks changes,
    or an adapter there is switched, they are computed again.

    Args:
        model: The Hugging Face model.
        family: Its family.
        arch: Its parts.
        limit: How many bytes of features to keep at the most.
    """

    def __init__(
        self, model: nn.Module, family: Family, arch: Architecture, *, limit: int = _LIMIT
    ):
        self._model, self._family, self._arch, self._limit = model, family, arch, limit
        self._stored: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._form: torch.Size | None = None
        self._works = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        self._before_text = _outside(model, arch.decoder.stack.path)

    def inputs_for(self, prompt: Prompt) -> Mapping[str, Any]:
        """A prompt's tensors, with features that are known in place of pixels.

        Where the features of its pictures cannot be computed apart, its tensors as they are.
        """
        if not self._works or not any(layout.images for layout in prompt.layouts):
            return prompt.inputs
        try:
            pictures = Pictures(
                self._model, self._family, self._arch, prompt.inputs, prompt.layouts
            )
            state = self._state()
            keys = [_digest(state, pictures.tensors([n])) for n in range(len(pictures))]
            features = self._features(pictures, keys)
        except NotSeparable:
            return prompt.inputs
        known = {"image": pictures.as_output(features, self._form)}
        return {**prompt.inputs, "pixel_values": None, "mm_encoder_outputs": known}

    def _state(self) -> str:
        """What features depend on beside pixels: weights, adapters on or off, hooks of others."""
        modules = [m for top in self._before_text for m in top.modules()]
        settings = [facts for m in modules if (facts := module_settings(m))]
        device = self._model.device.type
        autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
        return f"{weights_state(*self._before_text)} {settings} {autocast}"

    def _features(self, pictures: Pictures, keys: list[str]) -> list[Tensor]:
        missing = {key: n for n, key in enumerate(keys) if key not in self._stored}
        if missing:
            found = pictures.features(list(missing.values()))
            self._form = pictures.form
            for key, value in zip(missing, found, strict=True):
                self._stored[key] = value.clone()  # not a view of all pictures of its batch
                self._bytes += value.nbytes
        features = [self._stored[key] for key in keys]
        for key in keys:
            self._stored.move_to_end(key)
        while self._bytes > self._limit:
            _, value = self._stored.popitem(last=False)
            self._bytes -= value.nbytes
        return features


def _outside(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules beside those on the way to one: all of a model but what is below that one."""
    found, module = [], model
    for name in path.split("."):
        found += [child for other, child in module.named_children() if other != name]
        module = getattr(module, name)
    return found


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """A hash of what a picture is read from and by."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()
