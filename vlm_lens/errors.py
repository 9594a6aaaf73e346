"""The errors a user can meet; each message says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import NoReturn


class VLMLensError(ValueError):
    """Base of every error raised by vlm_lens about what it was asked to do."""


class PromptError(VLMLensError):
    """Text, pictures or tensors that do not make a prompt for this model."""


class PointError(VLMLensError):
    """A point that this model does not have, or that cannot be used as asked."""


class PositionError(VLMLensError):
    """A position that is not in this prompt."""


class InterventionError(VLMLensError):
    """An intervention that does not fit the model or the prompt, or that had no effect."""


class VectorError(VLMLensError):
    """A vector of the wrong width, layer, place or model, or a file that holds none."""


class ModelError(VLMLensError):
    """A model that cannot be wrapped or loaded as asked."""


class KeywordError(VLMLensError, TypeError):
    """An argument that a method or a class does not take; says what it is called here."""


class UnknownAttributeError(VLMLensError, AttributeError):
    """An attribute that an object of this package does not have; says what it is called here."""


def refuse_attribute(owner: type, name: str, answers: Mapping[str, str]) -> NoReturn:
    """Raises for an attribute that a class does not have.

    Raises:
        UnknownAttributeError: Always; with what it is called here, or near matches.
    """
    if name.startswith("_"):  # Python and IPython ask for many such names
        raise AttributeError(name)
    if name in answers:
        raise UnknownAttributeError(f"{owner.__name__} has no {name!r}: {answers[name]}.")
    known = [n for n in dir(owner) if not n.startswith("_")]
    known += [n for n in getattr(owner, "__dataclass_fields__", ()) if n not in known]
    raise UnknownAttributeError(f"{owner.__name__} has no {name!r}.{near_matches(name, known)}")


def near_matches(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A clause that names the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=most, cutoff=0.5)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""
