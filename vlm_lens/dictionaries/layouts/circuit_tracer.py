"""circuit-tracer's transcoders: `config.yaml` and one `layer_<n>.safetensors` a block.

```
<repository or folder of it>/
    config.yaml               model_kind: transcoder_set, model_name, scan,
                              feature_input_hook, feature_output_hook, activation, k
    layer_<n>.safetensors     W_enc [f, d], W_dec [f, d], b_enc [f], b_dec [d],
                              activation_function.threshold [f]
                              W_skip [d, d], applied as x W_skip^T
```

Features are JumpReLU where there are thresholds, the `k` largest whatever their sign where the
config says `activation: topk` or the file holds a `k`, and else ReLU (Hanna et al. 2025,
github.com/safety-research/circuit-tracer). Hooks are TransformerLens's, below `blocks.<n>.`:

| hook there                        | what it is there            | point here            |
|-----------------------------------|-----------------------------|-----------------------|
| `hook_resid_mid`, `hook_mlp_in`   | the stream before the norm  | `hook_resid_mid`      |
| `mlp.hook_in`                     | what the MLP reads          | `ln2.hook_normalized` |
| `ln2.hook_normalized`             | before the norm's weight    | none                  |
| `hook_mlp_out`                    | what is added to the stream | `hook_mlp_out`        |
| `mlp.hook_out`                    | what the MLP gives          | the same, if no norm follows |

A cross-layer transcoder (`W_enc_<n>.safetensors`) rebuilds an MLP's output from the features of all
blocks before it, so no block's files are one on their own: refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml

from vlm_lens.dictionaries.layouts.parts import Found, Reader, named, number
from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.storage.files import read_tensors

_FILE = re.compile(r"layer_(?P<layer>\d+)\.safetensors$")
_NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
_CONFIG, _THRESHOLD = "config.yaml", "activation_function.threshold"
_READS = {"hook_mlp_in": "hook_resid_mid", "hook_resid_mid": "hook_resid_mid",
          "mlp.hook_in": "ln2.hook_normalized"}  # fmt: skip
_WRITES = {"hook_mlp_out": "hook_mlp_out", "mlp.hook_out": "mlp.hook_out"}


class CircuitTracer(Reader):
    """Reads sets of transcoders such as `mntss/transcoder-Llama-3.2-1B`."""

    name = "circuit-tracer"
    files = (_CONFIG, "layer_*.safetensors")
    ending = ".safetensors"

    def matches(self, folder: Path) -> bool:
        """Whether it is one of the files, or a folder of them or of their config."""
        if folder.is_dir():
            return (folder / _CONFIG).is_file() or (folder / "W_enc_0.safetensors").is_file()
        return bool(_FILE.search(folder.name))

    def read(self, folder: Path, origin: str) -> Found:
        """The transcoder of a file.

        Raises:
            DictionaryError: A folder of several, a cross-layer transcoder, a set whose files are
                elsewhere, an activation that is not known, or a damaged file.
        """
        path = self._file(folder)
        about = _settings(path.parent / _CONFIG)
        layer = int(_FILE.search(path.name)["layer"])  # type: ignore[index]
        held, _ = read_tensors(path)
        tensors = named(held, _NAMES, path)
        tensors["w_enc"] = tensors["w_enc"].T
        if "W_skip" in held:
            tensors["w_skip"] = held["W_skip"].T
        about = {"k": held["k"], "activation": "topk", **about} if "k" in held else about
        unsaid, kind = "", about.get("activation")
        if kind == "topk":
            tensors["signed"] = torch.ones(())
            if about.get("k") is None:
                unsaid = f"{path.parent / _CONFIG} does not say how many features stay: give k=."
            else:
                tensors["k"] = number(about["k"])
        elif kind not in (None, "relu", "jump_relu", "jumprelu"):
            raise DictionaryError(
                f"{path.parent / _CONFIG} names the activation {kind!r}; topk, relu and jump_relu "
                "are read."
            )
        elif kind != "relu" and _THRESHOLD in held:
            tensors["threshold"] = held[_THRESHOLD]
        elif kind in ("jump_relu", "jumprelu"):
            raise DictionaryError(f"{path} has no {_THRESHOLD}, which JumpReLU needs.")
        points, unknown = [], []
        for key, known in (("feature_input_hook", _READS), ("feature_output_hook", _WRITES)):
            hook = str(about.get(key) or "")
            points.append(f"blocks.{layer}.{known[hook]}" if known.get(hook) else "")
            if hook and not points[-1]:
                unknown.append(f"{key} {hook} of {path.parent / _CONFIG} is no point here.")
        return Found(
            tensors, *points, str(about.get("model_name") or ""), unsaid=unsaid, transcodes=True,
            nowhere=" ".join(unknown),
        )  # fmt: skip

    def _file(self, folder: Path) -> Path:
        """The file of one transcoder."""
        if folder.is_file():
            return folder
        about = _settings(folder / _CONFIG)
        across = (folder / "W_enc_0.safetensors").is_file()
        if across or about.get("model_kind") == "cross_layer_transcoder":
            raise DictionaryError(
                f"{folder} holds a cross-layer transcoder: the features of every block up to it "
                "write to an MLP's output, so that none of its files is a transcoder on its own. "
                "It is not read; sets of one transcoder a block are."
            )
        there = sorted(
            (int(match["layer"]), path)
            for path in folder.glob("layer_*.safetensors")
            if (match := _FILE.search(path.name))
        )
        if not there and (where := about.get("transcoders")):
            first = where[0] if isinstance(where, list) else where
            raise DictionaryError(
                f"The files of {folder} are elsewhere, {first}, ...: give where they are, "
                "Dictionary.from_pretrained(repository, folder)."
            )
        if len(there) == 1:
            return there[0][1]
        names = ", ".join(path.stem for _, path in there[:4]) or "layer_0, layer_1"
        raise DictionaryError(f"{folder} holds one transcoder a block: name one of {names}, ...")


def _settings(path: Path) -> dict[str, Any]:
    """What `config.yaml` says; nothing where there is none.

    Raises:
        DictionaryError: It cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DictionaryError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        raise DictionaryError(f"{path} holds no settings but a {type(found).__name__}.")
    return found


__all__ = ["CircuitTracer"]
