"""Gemma Scope 2: `config.json` and `params.safetensors`, JumpReLU.

```
<kind>/layer_<l>_width_<w>_l0_<size>[_affine]/
    config.json           hf_hook_point_in, hf_hook_point_out, model_name, architecture, type
    params.safetensors    w_enc [d, f], w_dec [f, d], b_enc, b_dec, threshold [f]
                          affine_skip_connection [d_in, d_out]
```

| folder       | it was trained on                                  | point here                |
|--------------|----------------------------------------------------|---------------------------|
| `resid_post` | output of the block                                | `hook_resid_post`         |
| `attn_out`   | input of `o_proj`, heads side by side              | `attn.hook_z`             |
| `mlp_out`    | output of `post_feedforward_layernorm`             | `hook_mlp_out`            |
| `transcoder` | output of `pre_feedforward_layernorm` -> `mlp_out` | `ln2.hook_normalized` -> |
"""

from __future__ import annotations

import re
from pathlib import Path

from vlm_lens.dictionaries.layouts.parts import Found, Reader, config, named
from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.storage.files import read_tensors

_HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "ln2.hook_normalized",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
_FOLDERS = {  # beginning of a folder's name -> point in, point out
    "resid_post": ("hook_resid_post",) * 2,
    "attn_out": ("attn.hook_z",) * 2,
    "mlp_out": ("hook_mlp_out",) * 2,
    "transcoder": ("ln2.hook_normalized", "hook_mlp_out"),
}
_HOOK = re.compile(r"layers\.(?P<layer>\d+)\.(?P<rest>.+)$")
_NAMES = {"w_enc": "w_enc", "b_enc": "b_enc", "w_dec": "w_dec", "b_dec": "b_dec",
          "threshold": "threshold"}  # fmt: skip


class GemmaScope2(Reader):
    """Reads folders of `google/gemma-scope-2-*`."""

    name = "Gemma Scope 2"
    files = ("config.json", "params.safetensors")

    def read(self, folder: Path, origin: str) -> Found:
        """The dictionary of a folder.

        Raises:
            DictionaryError: A cross-layer dictionary, another architecture, or a damaged folder.
        """
        path = folder / "params.safetensors"
        about = config(folder / "config.json") if (folder / "config.json").is_file() else {}
        kind = about.get("architecture", "jump_relu")
        if kind not in ("jump_relu", "jumprelu"):
            raise DictionaryError(f"{folder} holds a {kind!r}; Gemma Scope 2 is read as JumpReLU.")
        held, _ = read_tensors(path)
        if any(tensor.dim() > 2 for tensor in held.values()):
            raise DictionaryError(
                f"{folder} holds a dictionary over several layers (crosscoder or cross-layer "
                "transcoder), and these are not read: take one of resid_post, attn_out, mlp_out "
                "or transcoder."
            )
        tensors = named(held, _NAMES, path)
        if "affine_skip_connection" in held:
            tensors["w_skip"] = held["affine_skip_connection"]
        elif about.get("affine_connection"):
            raise DictionaryError(f"{path} has no affine_skip_connection, which its config names.")
        model = str(about.get("model_name", ""))
        hooks = [about.get(key) for key in ("hf_hook_point_in", "hf_hook_point_out")]
        transcodes = bool(hooks[1]) and hooks[0] != hooks[1]
        if unknown := [hook for hook in hooks if hook and not _point(hook)]:
            return Found(
                tensors, model=model, transcodes=transcodes,
                nowhere=f"The hook {unknown[0]!r} has no point here; known are "
                f"{', '.join(_HOOKS)} of a layer.",
            )  # fmt: skip
        point, point_out = self._points(about, f"{origin}/{folder.name}")
        return Found(tensors, point, point_out, model, transcodes=transcodes or point != point_out)

    def _points(self, about: dict, origin: str) -> tuple[str, str]:
        """The points, by the config, or where there is none by the folder's name."""
        hook_in, hook_out = about.get("hf_hook_point_in"), about.get("hf_hook_point_out")
        if hook_in:
            point = _point(hook_in)
            return point, _point(hook_out) if hook_out else point
        layer = re.search(r"layer_(\d+)", origin)
        for beginning, kinds in _FOLDERS.items():
            if layer and re.search(rf"(?:^|/){beginning}", origin):
                point, point_out = (f"blocks.{layer[1]}.{kind}" for kind in kinds)
                return point, point_out
        return "", ""


def _point(hook: str) -> str:
    match = _HOOK.search(hook)
    known = match is not None and match["rest"] in _HOOKS
    return f"blocks.{match['layer']}.{_HOOKS[match['rest']]}" if match and known else ""


__all__ = ["GemmaScope2"]
