"""An experiment as a value: a frozen dataclass that runs, with seeds and provenance kept."""

from __future__ import annotations

import dataclasses
import platform
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.identity import plain
from vlm_lens.recipes.result import RecipeError, Result

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recipe", "RecipeError", "Result"]

T = TypeVar("T")
_SHOW_PROGRESS: ContextVar[bool] = ContextVar("show_progress", default=False)


@dataclass(frozen=True)
class Recipe(ABC):
    """An experiment said as data: its fields are its settings, `run` gives a Result.

    One's own recipe is a frozen dataclass with one method, `measure`:

        @dataclass(frozen=True)
        class VectorNorm(Recipe):
            task: str

            def measure(self, vlm):
                task = Task.load(self.task)
                prompts = task.example_sets("text", seed=1)
                vector = TaskVector.read(vlm, prompts, at=Find(":", -3))
                return pd.DataFrame({"layer": range(vlm.cfg.n_layers), "norm": vector.norm()})

        VectorNorm("country-capital").run(vlm).plot()

    Fields are checked against their annotations when the recipe is made. What needs more than a
    type is checked in `validate`; what needs the model, in `validate_for`.

    Attributes:
        model: The model to load when `run` is given none: a zoo name, a folder or a Hub id.
    """

    model: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def measure(self, vlm: HookedVLM) -> Result | pd.DataFrame:
        """The experiment itself.

        Args:
            vlm: A HookedVLM.

        Returns:
            A Result, or a table that becomes one. Provenance is added by `run`.
        """

    def validate(self) -> None:  # noqa: B027  nothing to check is a fair default
        """Checks fields beyond their types; raise RecipeError, naming the field."""

    def validate_for(self, vlm: HookedVLM) -> None:  # noqa: B027
        """Checks fields against the model; raise RecipeError, naming the field."""

    def check(self) -> None:
        """Checks every field.

        Raises:
            RecipeError: A field has a value that it cannot have.
        """
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise RecipeError(
                    f"{type(self).__name__}.{name} is {value!r}; it must be {_said(hint)}."
                )
        self.validate()

    def run(self, vlm: HookedVLM = None, *, progress: bool = True) -> Result:
        """Runs the experiment.

        Args:
            vlm: A HookedVLM; by default the one that the field `model` names is loaded.
            progress: Whether a progress bar is shown.

        Returns:
            The result, with its provenance.

        Raises:
            RecipeError: A field is wrong, before anything is computed; or there is no model.
        """
        self.check()
        vlm = self._model(vlm)
        self.validate_for(vlm)
        token = _SHOW_PROGRESS.set(progress)
        started, clock = datetime.now(UTC), perf_counter()
        try:
            result = self.measure(vlm)
        finally:
            _SHOW_PROGRESS.reset(token)
        if not isinstance(result, Result):
            result = Result(_as_table(result, type(self).__name__))
        about = {
            "recipe": self.to_dict(),
            "model": model_facts(vlm),
            "versions": versions(),
            "seeds": list(self.used_seeds()),
            "date": started.isoformat(timespec="seconds"),
            "seconds": round(perf_counter() - clock, 3),
            "machine": platform.machine(),
        }
        return dataclasses.replace(result, provenance={**about, **result.provenance})

    def progress(self, items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
        """The items, with a progress bar while they are gone through, if `run` shows one.

        Args:
            items: What to go through.
            what: What is being done, in a few words.
            total: How many items, where they have no length.
        """
        from tqdm.auto import tqdm

        return tqdm(items, desc=what, total=total, leave=False, disable=not _SHOW_PROGRESS.get())

    def used_seeds(self) -> tuple[int, ...]:
        """The seeds of its random choices, as the fields `seeds` or `seed` say."""
        if hasattr(self, "seeds"):
            return seed_list(self.seeds)
        return (self.seed,) if getattr(self, "seed", None) is not None else ()

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON data: its class and its fields."""
        fields = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"class": type(self).__name__, **fields}

    def _model(self, vlm: HookedVLM) -> Any:
        if vlm is None:
            if self.model is None:
                raise RecipeError(
                    f"There is no model to run on: give one, {type(self).__name__}(...).run(vlm), "
                    'or name it in the recipe, model="toy-llava".'
                )
            return HookedVLM.from_pretrained(self.model)
        if self.model is not None and self.model != vlm.name:
            raise RecipeError(
                f"{type(self).__name__}.model is {self.model!r}, and run was given {vlm.name}: "
                "leave one of the two out."
            )
        return vlm


@contextmanager
def speaking_for(recipe: Recipe, inner: type[Recipe]) -> Iterator[None]:
    """Errors of a recipe that another one is made of name the fields of the outer one.

    Args:
        recipe: The outer recipe, which has fields of the same names.
        inner: The class of the inner one.
    """
    try:
        yield
    except RecipeError as error:
        said = str(error).replace(f"{inner.__name__}.", f"{type(recipe).__name__}.")
        raise RecipeError(said) from None


def seed_list(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds meant by a field: a number `n` means 1, 2, ..., n, as in the paper."""
    return tuple(range(1, seeds + 1)) if isinstance(seeds, int) else tuple(seeds)


# ---------------------------------------------------------------------------- fields


def _hints(cls: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a class made inside a function may name what cannot be looked up
        return {}
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation; what is not understood is let through."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) and hint is not Any else True


def _said(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(one) for one in inner)
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    if origin is tuple:
        return f"a tuple of {_said(inner[0])}"
    return {type(None): "None"}.get(hint, getattr(hint, "__name__", str(hint)))


# ---------------------------------------------------------------------------- provenance


def model_facts(vlm: HookedVLM) -> dict[str, Any]:
    """What says which model it was, as plain JSON data."""
    config = vlm.hf_model.config
    quantization = getattr(config, "quantization_config", None)
    return {
        "name": vlm.name,
        "revision": getattr(config, "_commit_hash", None),
        "family": vlm.cfg.family,
        "class": type(vlm.hf_model).__name__,
        "layers": vlm.cfg.n_layers,
        "unembed_hash": vlm.facts.unembed_hash,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "device": str(vlm.device),
        "attention": getattr(config, "_attn_implementation", None),
        "quantization": None if quantization is None else plain(str(quantization)),
    }


def versions() -> dict[str, str]:
    """The versions of the libraries on which numbers depend."""
    from importlib.metadata import version

    import torch
    import transformers

    from vlm_lens.version import __version__

    others = ("tokenizers", "numpy", "pillow", "scikit-learn", "scipy")
    return {
        "vlm_lens": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in others},
    }


def _as_table(value: Any, recipe: str) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(value, pd.DataFrame):
        raise RecipeError(
            f"{recipe}.measure returned a {type(value).__name__}; it must return a Result or a "
            "pandas DataFrame."
        )
    return value
