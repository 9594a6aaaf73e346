"""An experiment as a value: a frozen dataclass that runs, with seeds and provenance kept."""

from __future__ import annotations

import dataclasses
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import Answering, answering
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.fields import misfit, plain_field, seed_list
from vlm_lens.recipes.parts.identity import plain
from vlm_lens.recipes.result import RecipeError, Result

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recipe", "RecipeError", "Result"]

T = TypeVar("T")
R = TypeVar("R", bound="Recipe")
_SHOW_PROGRESS: ContextVar[bool] = ContextVar("show_progress", default=False)


@dataclass(frozen=True)
class Recipe(Answering, ABC):
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

    Fields are checked against their annotations when the recipe is made (a list may stand for a
    tuple). What needs more than a type is checked in `validate`; what needs the model, in
    `validate_for`. A recipe that is made of others names them in `inner`: their checks are its own.

    Attributes:
        model: The model to load when `run` is given none: a zoo name, a folder or a Hub id.
    """

    model: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, plain_field(getattr(self, one.name)))
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

    def inner(self) -> Iterable[Recipe]:
        """The recipes that this one is made of; see `same`."""
        return ()

    def check(self) -> None:
        """Checks every field.

        Raises:
            RecipeError: A field has a value that it cannot have.
        """
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            wanted = misfit(type(self), one.name, value)
            if wanted is not None:
                raise RecipeError(f"{self.named(one.name)} is {value!r}; it must be {wanted}.")
        list(self.inner())  # is checked as it is made
        self.validate()

    def check_for(self, vlm: HookedVLM) -> None:
        """Checks every field against a model.

        Raises:
            RecipeError: A field has a value that this model cannot have.
        """
        for one in self.inner():
            with _speaking_for(type(self), type(one)):
                one.check_for(vlm)
        self.validate_for(vlm)

    # ------------------------------------------------------------------ what checks are made of

    def named(self, field: str) -> str:
        """A field as messages name it."""
        return f"{type(self).__name__}.{field}"

    def at_least(self, least: float, *names: str) -> None:
        """Refuses numbers below a bound; None is let through.

        Raises:
            RecipeError: A field is below.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{self.named(name)} is {value}; the least is {least}.")

    def some_different(self, *names: str) -> None:
        """Refuses tuples that are empty or hold a value twice.

        Raises:
            RecipeError: A field is one.
        """
        for name in names:
            value = getattr(self, name)
            if not value or len(set(value)) < len(value):
                raise RecipeError(f"{self.named(name)} is {value!r}; give one or more, each once.")

    def a_block(self, vlm: HookedVLM, name: str = "layer") -> None:
        """Refuses a number that is no block of the model; None and `"embed"` are let through.

        Raises:
            RecipeError: The field, or one of its entries, is such a number.
        """
        value = getattr(self, name)
        for layer in value if isinstance(value, tuple) else (value,):
            if isinstance(layer, int) and not 0 <= layer < vlm.cfg.n_layers:
                verb = "names" if isinstance(value, tuple) else "is"
                raise RecipeError(
                    f"{self.named(name)} {verb} {layer}; {vlm.name} has blocks "
                    f"0..{vlm.cfg.n_layers - 1}."
                )

    def must_see(self, vlm: HookedVLM, *names: str) -> None:
        """Refuses a model without pictures where a field asks for some.

        Args:
            vlm: The model.
            *names: Fields that are, or hold, modalities.

        Raises:
            RecipeError: The model takes no pictures, and one of the fields names `"image"`.
        """
        given = {name: getattr(self, name) for name in names}
        asked = [name for name, value in given.items() if value == "image" or (
                 isinstance(value, tuple) and "image" in value)]  # fmt: skip
        if asked and not vlm.family.takes_images:
            fields = " and ".join(map(self.named, asked))
            raise RecipeError(
                f"{vlm.name} takes no pictures, and {fields} asks for some: use 'text' instead of "
                "'image'."
            )

    def same(self, kind: type[R], **changes: Any) -> R:
        """A recipe of another kind with the values of the fields that both have.

        Args:
            kind: The other recipe.
            **changes: Fields to set otherwise.

        Raises:
            RecipeError: The other recipe refuses a value; the message names this one's field.
        """
        mine = {f.name for f in dataclasses.fields(self)} - {"model"}
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if f.name in mine}
        with _speaking_for(type(self), kind):
            return kind(**{**shared, **changes})

    @answering
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
        self.check_for(vlm)
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
        if not isinstance(vlm, HookedModel):
            raise RecipeError(
                f"{type(self).__name__}(...).run takes a HookedVLM, "
                f"HookedVLM.from_pretrained('toy-llava'), not {vlm!r:.60}."
            )
        if self.model is not None and self.model != vlm.name:
            raise RecipeError(
                f"{type(self).__name__}.model is {self.model!r}, and run was given {vlm.name}: "
                "leave one of the two out."
            )
        return vlm


@contextmanager
def _speaking_for(recipe: type[Recipe], inner: type[Recipe]) -> Iterator[None]:
    """Errors of a recipe that another one is made of name the fields of the outer one."""
    try:
        yield
    except RecipeError as error:
        message = str(error).replace(f"{inner.__name__}.", f"{recipe.__name__}.")
        raise RecipeError(message) from None


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
        "weights": getattr(config, "weights", None),
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
