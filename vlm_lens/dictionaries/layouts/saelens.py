"""SAELens: `cfg.json` and `sae_weights.safetensors`; also what `Dictionary.save` writes.

```
<folder>/
    cfg.json                    architecture, d_in, d_sae, k, apply_b_dec_to_input,
                                normalize_activations, reshape_activations,
                                metadata: model_name, hook_name, hook_name_out
                                (older files hold the metadata beside the rest)
    sae_weights.safetensors     W_enc [d, f], W_dec [f, d], b_enc, b_dec, threshold [f],
                                W_skip [d_out, d_in], applied as x W_skip^T
```
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_lens.dictionaries.layouts.parts import Found, Reader, config, named, number
from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.storage.files import read_tensors, write_tensors, write_whole, written_together

_NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
_KNOWN = ("standard", "jumprelu", "topk", "batchtopk")
_TRANSCODER = re.compile(r"^(?:(?P<kind>.+?)_)??(?:skip_)?transcoder$")
_AS_IT_IS = (None, "none", "expected_average_only_in")  # the last is folded into the weights
_NORMALIZED = (".ln1.hook_normalized", ".ln2.hook_normalized")
_CFG, _WEIGHTS, _SET = "cfg.json", "sae_weights.safetensors", "dictionary"


class SAELens(Reader):
    """Reads folders that SAELens has saved."""

    name = "SAELens"
    files = (_CFG, _WEIGHTS)

    def read(self, folder: Path, origin: str) -> Found:
        """The dictionary of a folder.

        Raises:
            DictionaryError: Another architecture, activations that are normalised first, or a
                damaged folder.
        """
        about, path = config(folder / _CFG), folder / _WEIGHTS
        said = about | (about.get("metadata") or {})
        architecture = str(about.get("architecture", "standard"))
        transcoder = _TRANSCODER.match(architecture)
        kind = (transcoder["kind"] or "standard") if transcoder else architecture
        if kind not in _KNOWN:
            raise DictionaryError(
                f"{folder} holds a {architecture!r}; {', '.join(_KNOWN)} are read, and transcoders "
                "of these."
            )
        if about.get("normalize_activations") not in _AS_IT_IS:
            raise DictionaryError(
                f"{folder} encodes activations after {about['normalize_activations']!r}, so its "
                "features are not of the activation itself; it is not read."
            )
        held, _ = read_tensors(path)
        tensors = named(held, _NAMES, path) | _activation(kind, said, held, folder)
        if about.get("rescale_acts_by_decoder_norm"):
            tensors = _rescaled(tensors)
        if about.get("apply_b_dec_to_input"):
            tensors["pre_bias"] = tensors["b_dec"]
        if "W_skip" in held:
            tensors["w_skip"] = held["W_skip"].T
        point = str(said.get("hook_name") or "")
        out = str(said.get("hook_name_out") or "") if transcoder else point
        nowhere = ""
        if point.endswith(_NORMALIZED) and said.get("hooks") != "vlm_lens":
            nowhere = (
                f"{point} is the value before the norm's weight there, which is no point here."
            )
            point = ""
        labels = {str(k): str(v) for k, v in (said.get("labels") or {}).items()}
        return Found(
            tensors, point, out, str(said.get("model_name") or ""), labels=labels,
            transcodes=bool(transcoder), nowhere=nowhere,
        )  # fmt: skip


def _activation(
    kind: str, said: dict[str, Any], held: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    if kind == "jumprelu":
        return named(held, {"threshold": "threshold"}, folder / _WEIGHTS)
    if kind == "batchtopk":
        threshold = held.get("threshold", held.get("topk_threshold"))
        if threshold is not None:  # what stands for it outside of training
            return {"threshold": threshold}
    if kind in ("topk", "batchtopk"):
        k = said.get("k") or (said.get("activation_fn_kwargs") or {}).get("k")
        if not k:
            raise DictionaryError(f"{folder / _CFG} does not say k, how many features stay.")
        signed = {n: torch.ones(()) for n in ("signed", "by_magnitude") if said.get(n)}
        return {"batch_k" if kind == "batchtopk" else "k": number(k), **signed}
    activation = said.get("activation_fn") or said.get("activation_fn_str") or "relu"
    if activation == "topk":  # an older way to say it
        return _activation("topk", said, held, folder)
    if activation != "relu":
        raise DictionaryError(f"{folder} has the activation {activation!r}; ReLU is read.")
    return {}


def _rescaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features counted in units of their decoder's norm, as they are chosen by."""
    norm = tensors["w_dec"].norm(dim=-1)
    return tensors | {
        "w_enc": tensors["w_enc"] * norm,
        "b_enc": tensors["b_enc"] * norm,
        "w_dec": tensors["w_dec"] / norm[:, None],
    }


def write(dictionary: DictionaryValue, folder: str | Path, card: str = "") -> Path:
    """Writes a dictionary as SAELens would, and its card as `README.md`.

    SAELens has no TopK that keeps features below 0; where there are some, a warning says so.

    Args:
        dictionary: The dictionary.
        folder: The folder.
        card: What `README.md` says; none by default.

    Returns:
        The folder.
    """
    coder, tensors = dictionary.coder, dictionary.coder.tensors
    if coder.signed is not None:
        warnings.warn(
            "This TopK keeps features below 0, which SAELens sets to 0 where it loads the folder; "
            "Dictionary.from_pretrained reads it as it is.",
            stacklevel=3,
        )
    held = {theirs: tensors[ours] for ours, theirs in _NAMES.items()}
    cfg: dict[str, Any] = {
        "architecture": "standard", "d_in": dictionary.d_in, "d_sae": dictionary.n_features,
        "dtype": str(coder.w_enc.dtype).removeprefix("torch."), "device": "cpu",
        "normalize_activations": "none", "rescale_acts_by_decoder_norm": False,
        "apply_b_dec_to_input": coder.pre_bias is not None,
        "reshape_activations": "hook_z" if dictionary.point.endswith("hook_z") else "none",
    }  # fmt: skip
    if coder.pre_bias is not None and not torch.equal(coder.pre_bias, coder.b_dec):
        held["b_enc"] = coder.b_enc - coder.pre_bias @ coder.w_enc  # the same, in their terms
        cfg["apply_b_dec_to_input"] = False
    if coder.threshold is not None:
        cfg["architecture"] = "jumprelu"
        held["threshold"] = coder.threshold.expand(dictionary.n_features).clone()
    for name, kind in (("k", "topk"), ("batch_k", "batchtopk")):
        if name in tensors:
            cfg |= {"architecture": kind, "k": int(tensors[name])}
    metadata: dict[str, Any] = {
        "model_name": dictionary.about.get("model", ""), "hook_name": dictionary.point,
        "hooks": "vlm_lens", "labels": dictionary.labels, "signed": coder.signed is not None,
        "by_magnitude": coder.by_magnitude is not None,
    }  # fmt: skip
    if dictionary.transcodes:
        kind = cfg["architecture"]
        cfg |= {"architecture": "transcoder" if kind == "standard" else f"{kind}_transcoder"}
        cfg["d_out"], metadata["hook_name_out"] = dictionary.d_out, dictionary.point_out
    if coder.w_skip is not None:
        held["W_skip"] = coder.w_skip.T
    with written_together(folder, _SET, remove=["README.md"]) as to:
        write_tensors(to / _WEIGHTS, held)
        write_whole(to / _CFG, json.dumps(cfg | {"metadata": metadata}, indent=1))
        if card:
            write_whole(to / "README.md", card)
    return Path(folder)


__all__ = ["SAELens", "write"]
