"""EleutherAI's sparsify (formerly sae): `cfg.json` and `sae.safetensors`, TopK.

```
<hookpoint>/              "layers.24", "model.layers.24", "layers.24.mlp"
    cfg.json              d_in, k, signed, activation, transcode, skip_connection
    sae.safetensors       encoder.weight [f, d], encoder.bias [f], W_dec [f, d], b_dec [d]
                          W_skip [d, d], applied as x W_skip^T
```

With `signed` the `k` largest by magnitude stay, with their signs; without it the `k` largest above
0. An autoencoder takes `b_dec` off before it encodes; a transcoder does not. The hookpoint is the
folder's name: the output of a module, which a transcoder reads the input of.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vlm_lens.dictionaries.layouts.parts import (
    Found,
    Reader,
    config,
    named,
    number,
    own_part,
    point_of_module,
)
from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.storage.files import read_tensors

_NAMES = {"w_enc": "encoder.weight", "b_enc": "encoder.bias", "w_dec": "W_dec", "b_dec": "b_dec"}
_READS = {"hook_mlp_out": "ln2.hook_normalized", "hook_attn_out": "ln1.hook_normalized"}


class Eleuther(Reader):
    """Reads what `sparsify` has written: `lmms-lab/llama3-llava-next-8b-hf-sae-131k`."""

    name = "EleutherAI sparsify"
    files = ("cfg.json", "sae.safetensors")

    def read(self, folder: Path, origin: str) -> Found:
        """The dictionary of a folder.

        Raises:
            DictionaryError: An activation that is not TopK, or a damaged folder.
        """
        about, path = config(folder / "cfg.json"), folder / "sae.safetensors"
        kind = about.get("activation", "topk")
        if kind != "topk":
            raise DictionaryError(f"{folder} has the activation {kind!r}; TopK is read.")
        if "k" not in about:
            raise DictionaryError(f"{folder / 'cfg.json'} does not say k, how many features stay.")
        held, _ = read_tensors(path)
        tensors = named(held, _NAMES, path)
        tensors["w_enc"] = tensors["w_enc"].T
        tensors["k"] = number(about["k"])
        if about.get("signed"):
            tensors |= {"signed": torch.ones(()), "by_magnitude": torch.ones(())}
        if "W_skip" in held:
            tensors["w_skip"] = held["W_skip"].T
        module = folder.name if point_of_module(folder.name) else origin.rsplit("/", 1)[-1]
        point = point_out = point_of_module(module)
        transcodes, nowhere = bool(about.get("transcode")), ""
        if transcodes:
            layer, _, kind = point.rpartition(".")
            if point and kind not in _READS:
                nowhere = f"A transcoder of {module} reads what no point here is."
            point = f"{layer}.{_READS[kind]}" if kind in _READS else ""
        else:
            tensors["pre_bias"] = tensors["b_dec"]
        return Found(
            tensors, point, point_out, module=own_part(module), transcodes=transcodes,
            nowhere=nowhere,
        )  # fmt: skip


__all__ = ["Eleuther"]
