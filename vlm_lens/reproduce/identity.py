"""What numbers depend on beside the settings: weights, processors, libraries, as fingerprints."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import versions

__all__ = ["library_versions", "named_model_facts", "processor_digest", "weights_digest"]

# beside those that every result records: what draws, decodes pictures, tokenizes and clusters
_LIBRARIES = ("numpy", "pandas", "scikit-learn", "pillow", "tokenizers", "torchvision",
              "accelerate", "bitsandbytes")  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")


def library_versions() -> dict[str, str | None]:
    """Versions of the libraries on which numbers depend; None of one that is not installed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {**{name: installed(name) for name in _LIBRARIES}, **versions()}


def processor_digest(vlm: HookedVLM) -> str:
    """A fingerprint of how texts and pictures become tensors.

    Args:
        vlm: A HookedVLM.
    """
    settings = vlm.processor.to_dict() if hasattr(vlm.processor, "to_dict") else {}
    backend = getattr(vlm.tokenizer, "backend_tokenizer", None)
    tokens = vlm.tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for left in ("padding", "truncation"):  # set anew by every call
        tokens.pop(left, None)
    templates = [getattr(one, "chat_template", None) for one in (vlm.processor, vlm.tokenizer)]
    return _digest([settings, tokens, vlm.tokenizer.special_tokens_map, templates])


def named_model_facts(name: str) -> dict[str, Any]:
    """What says which model a name stands for now, without loading it.

    Of the Hub its revision; of a folder a fingerprint of the files of weights: names, sizes and
    some bytes of each.

    Args:
        name: A zoo name, a folder, a checkpoint's short name or a Hub id.

    Raises:
        ModelError: Nothing of that name.
    """
    from vlm_lens.model.loading import find, read_config

    where, checkpoint = find(name)
    options = {} if checkpoint is None else {"revision": checkpoint.revision}
    config = read_config(name, where, **options)
    said = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    facts = {"name": name, "revision": getattr(config, "_commit_hash", None)}
    facts["config"] = _digest(said)
    if Path(where).is_dir():
        files = sorted(path for glob in _WEIGHTS for path in Path(where).glob(glob))
        facts["weights"] = _digest([[path.name, _sample(path)] for path in files])
    return facts


def weights_digest(model: Any, samples: int = 64) -> str:
    """A fingerprint of a model's weights: names, shapes, and some values of each.

    Args:
        model: A torch module.
        samples: How many values of each tensor, evenly spaced.
    """
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.numel():
            flat = weight.detach().flatten()
            at = torch.linspace(0, len(flat) - 1, min(samples, len(flat)), dtype=torch.float64)
            digest.update(flat[at.long().to(flat.device)].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
    said = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _sample(path: Path, pieces: int = 1024, length: int = 256) -> str:
    """A fingerprint of a file: its size, and pieces of it, evenly spaced; a small one whole."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= pieces * length:
            digest.update(file.read())
        for i in range(pieces if size > pieces * length else 0):
            file.seek(i * (size - length) // (pieces - 1))
            digest.update(file.read(length))
    return digest.hexdigest()[:16]
