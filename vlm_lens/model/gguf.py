"""GGUF files (llama.cpp's format) as ordinary folders: dequantised once, kept in the user's cache.

transformers converts the architectures that it knows and dequantises to float32, which takes about
20 s for 135 M parameters, and what it has loaded so it cannot save. Here the weights are saved as
safetensors of a plain model; from then on they load in a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from vlm_lens.errors import ModelError
from vlm_lens.storage.cache import cache_folder
from vlm_lens.storage.files import FileError, read_json, remove_rests, told_writing

__all__ = ["dequantized", "is_whole", "precision"]

_FORMAT = 1  # of the folders in the cache; raised when they are made differently
_MADE = "made.json"
_MAGIC = b"GGUF"


def dequantized(file: Path, note: str = "") -> Path:
    """A folder that transformers loads, with the weights of a GGUF file in float32.

    It is made at the first call and found from then on: told by the file's content, by the version
    of transformers that converted it, and by the format of the folder. It is written aside and put
    in its place by one rename, so that it is whole or not there; two processes wait for each other.

    Args:
        file: The GGUF file.
        note: What else is to be said of the weights, in front of their precision.

    Raises:
        ModelError: gguf is not installed, the file is no GGUF file or cut short, or transformers
            cannot convert its architecture.
        FileError: The cache cannot be written, or the disk has not enough room.
    """
    from filelock import FileLock

    _check_head(file)
    identity = _identity(file)
    folder = cache_folder("gguf") / f"{file.stem}-{identity['sha256'][:16]}"
    if is_whole(folder, identity):
        return folder
    _check_installed()
    with told_writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not is_whole(folder, identity):
                remove_rests(folder.parent)
                _make(file, folder, identity, note)
    return folder


def precision(file: Path) -> str:
    """How most weights of a GGUF file are kept, such as `"Q4_1"`."""
    from gguf import GGUFReader

    bytes_of: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        name = tensor.tensor_type.name
        bytes_of[name] = bytes_of.get(name, 0) + int(tensor.n_bytes)
    return max(bytes_of, key=bytes_of.__getitem__)


def is_whole(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a folder of the cache is complete, and was made of this by these versions."""
    try:
        return read_json(folder / _MADE) == identity
    except FileError:
        return False


def _identity(file: Path) -> dict[str, Any]:
    import transformers

    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"format": _FORMAT, "transformers": transformers.__version__, "sha256": digest}


def _check_head(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(8)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error
    if len(magic) < 8 or magic[:4] != _MAGIC:
        raise ModelError(f"{file} is not a GGUF file: it does not begin with the letters GGUF.")
    version = struct.unpack("<I", magic[4:])[0]
    if version not in (2, 3):
        raise ModelError(f"{file} is a GGUF file of version {version}; versions 2 and 3 are read.")


def _check_installed() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "Reading a GGUF file takes the package gguf:\n    pip install gguf"
        ) from error


def _check_whole_file(file: Path) -> int:
    """The bytes that the weights take in float32; the file must hold them all."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # the reader runs off the end of the file in many ways
        raise ModelError(
            f"{file} is a GGUF file that cannot be read ({type(error).__name__}: {error}): it is "
            "cut short or damaged. Get it again."
        ) from error
    end = max((int(t.data_offset) + int(t.n_bytes) for t in tensors), default=0)
    if not tensors or file.stat().st_size < end:
        raise ModelError(
            f"{file} is cut short: it has {file.stat().st_size} bytes and names {end}. "
            "Get it again."
        )
    return sum(4 * int(t.n_elements) for t in tensors)


def _make(file: Path, folder: Path, identity: dict[str, Any], note: str) -> None:
    from vlm_lens.storage.files import partial_name

    size = _check_whole_file(file)
    free = shutil.disk_usage(folder.parent).free
    if free < size * 1.05:
        raise FileError(
            f"{file.name} takes {size / 1e9:.1f} GB in float32, and {folder.parent} has "
            f"{free / 1e9:.1f} GB left. Make room, or set VLM_LENS_CACHE to another folder."
        )
    partial = folder.with_name(partial_name(folder.name))
    try:
        partial.mkdir()
        _convert(file, partial, note)
        (partial / _MADE).write_text(json.dumps(identity, indent=2) + "\n")
        if folder.exists():  # made by another version
            shutil.rmtree(folder)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _convert(file: Path, folder: Path, note: str) -> None:
    """Let transformers convert, and save as a plain model what it has converted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": file.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **given)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(
            f"transformers cannot convert {file}: {str(error).splitlines()[0]} Load the weights "
            "in transformers' own format instead."
        ) from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that says it is quantised refuses to be saved
    kept = precision(file)
    config.weights = f"{note or file.name}, {kept}, dequantised to float32"
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
