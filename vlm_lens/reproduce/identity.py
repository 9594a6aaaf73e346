"""What the numbers of a reproduction depend on: settings, models, libraries."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.recipes.base import model_facts
from vlm_lens.reproduce.setup import Setup
from vlm_lens.storage.fingerprint import fingerprint
from vlm_lens.storage.identity import library_versions

__all__ = ["identity", "named_model_facts"]

# with those of every run: what computes, draws, decodes pictures, tokenizes and clusters
_LIBRARIES = ("torch", "transformers", "numpy", "scipy", "pandas", "scikit-learn", "pillow",
              "tokenizers", "torchvision", "accelerate", "bitsandbytes")  # fmt: skip
_TOLD = ("revision", "dtype", "device", "attention", "quantization")
_WEIGHTS = ("*.safetensors", "*.bin")


def identity(setup: Setup, vlm: HookedModel) -> dict[str, str | int | None]:
    """Everything on which the numbers of a setup depend, by names that a message may use."""
    facts = model_facts(vlm)
    run = {k: v for k, v in run_identity(vlm).items() if not k.startswith("version")}
    asked = setup.to_dict()
    tasks = {"tasks": asked["tasks"], "further tasks": asked["further"]}
    return {
        "model": setup.model,
        "number of seeds": setup.seeds,
        **{kind: ", ".join(one["task"] for one in listed) for kind, listed in tasks.items()},
        **{f"content of the {kind}": fingerprint(listed) for kind, listed in tasks.items()},
        **{name: facts[name] for name in _TOLD},
        **run,
        **_named("base model", setup.base),
        **_named("unrelated model", setup.unrelated),
        **{f"version of {name}": v for name, v in library_versions(_LIBRARIES).items()},
    }


def _named(kind: str, name: str | None) -> dict[str, str | None]:
    if name is None:
        return {kind: None}
    facts = named_model_facts(name)
    return {kind: facts.pop("name"), **{f"{kind}'s {k}": v for k, v in facts.items()}}


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
    facts["config"] = fingerprint(said)
    if Path(where).is_dir():
        files = sorted(path for glob in _WEIGHTS for path in Path(where).glob(glob))
        facts["weights"] = fingerprint([[path.name, _sample(path)] for path in files])
    return facts


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
