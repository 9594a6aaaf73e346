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

_LIMIT = 512 << 20  # bytes of features kept


class PictureStore:
    """Features of pictures by their content; those unused the longest are forgotten first.

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
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._form: torch.Size | None = None
        self._works = "mm_encoder_outputs" in inspect.signature(model.forward).parameters

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
            keys = [_digest(pictures.tensors([n])) for n in range(len(pictures))]
            features = self._features(pictures, keys)
        except NotSeparable:
            return prompt.inputs
        known = {"image": pictures.as_output(features, self._form)}
        return {**prompt.inputs, "pixel_values": None, "mm_encoder_outputs": known}

    def _features(self, pictures: Pictures, keys: list[str]) -> list[Tensor]:
        missing = {key: n for n, key in enumerate(keys) if key not in self._kept}
        if missing:
            found = pictures.features(list(missing.values()))
            self._form = pictures.form
            for key, value in zip(missing, found, strict=True):
                self._kept[key] = value.clone()  # not a view of all pictures of its batch
                self._bytes += value.nbytes
        features = [self._kept[key] for key in keys]
        for key in keys:
            self._kept.move_to_end(key)
        while self._bytes > self._limit:
            _, value = self._kept.popitem(last=False)
            self._bytes -= value.nbytes
        return features


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of what a picture is read from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()
