"""A dictionary as a value: the tensors of a sparse coder, and the point that it belongs to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import SupportsIndex

from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integers
from vlm_lens.points.point import Point
from vlm_lens.serial import FrozenTensor, Savable
from vlm_lens.sparse import SparseCoder


class DictionaryError(VLMLensError):
    """A dictionary that cannot be read, or that does not fit the model or what is asked of it."""


@dataclass(frozen=True)
class DictionaryValue(Savable):
    """A sparse autoencoder or transcoder; `Dictionary` adds what is done with one.

    Attributes:
        tensors: The tensors of a `SparseCoder`, by name.
        point: The point whose activation it encodes.
        point_out: The point that it reconstructs: `point` for an autoencoder.
        about: Where it comes from, by name: `layout`, `origin`, `model`.
        labels: What features are about, where a card says it: number as text -> words.
        module: The Hugging Face module whose output (`"layers.3.mlp"`) it was made for, where the
            files name that instead of a point.
    """

    tensors: dict[str, FrozenTensor] = field(hash=False, repr=False)
    point: str
    point_out: str
    about: dict[str, str] = field(default_factory=dict, hash=False)
    labels: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    module: str = ""

    def __post_init__(self):
        shapes = {name: tuple(t.data.shape) for name, t in self.tensors.items()}
        needed = ("w_enc", "b_enc", "w_dec", "b_dec")
        if lost := [name for name in needed if name not in shapes]:
            raise DictionaryError(f"A dictionary needs {', '.join(needed)}; {lost} are missing.")
        if any(len(shapes[name]) != 2 for name in ("w_enc", "w_dec")):
            raise DictionaryError(f"w_enc and w_dec are matrices; these are of {shapes}.")
        (d_in, n), (n_dec, d_out) = shapes["w_enc"], shapes["w_dec"]
        right = {
            "w_enc": [(d_in, n)], "b_enc": [(n,)], "w_dec": [(n, d_out)], "b_dec": [(d_out,)],
            "pre_bias": [(d_in,)], "threshold": [(n,), ()], "k": [()], "batch_k": [()],
            "signed": [()], "by_magnitude": [()], "w_skip": [(d_in, d_out)],
        }  # fmt: skip
        for name, shape in shapes.items():
            if name not in right:
                raise DictionaryError(f"A dictionary has no tensor {name!r}.")
            if shape not in right[name]:
                raise DictionaryError(
                    f"{name} has shape {list(shape)}; with w_enc [d_in, features] = {[d_in, n]} and"
                    f" w_dec [features, d_out] = {[n_dec, d_out]} it is {list(right[name][0])}."
                )
        for name in ("k", "batch_k"):
            if name in self.tensors and not 1 <= int(self.tensors[name].data) <= n:
                k = int(self.tensors[name].data)
                raise DictionaryError(f"k is between 1 and the {n} features, not {k}.")

    # ------------------------------------------------------------------ sizes

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return self.tensors["w_enc"].data.shape[1]

    @property
    def d_in(self) -> int:
        """The width of what it encodes."""
        return self.tensors["w_enc"].data.shape[0]

    @property
    def d_out(self) -> int:
        """The width of what it reconstructs."""
        return self.tensors["w_dec"].data.shape[1]

    @property
    def transcodes(self) -> bool:
        """Whether it reconstructs another point than it reads."""
        return self.point != self.point_out

    @property
    def activation(self) -> str:
        """`"ReLU"`, `"JumpReLU"`, `"TopK(k=32)"` or `"BatchTopK(k=32)"`."""
        held = self.tensors
        if "k" in held:
            signed = ", signed" if "signed" in held else ""
            by = " by magnitude" if "by_magnitude" in held else ""
            return f"TopK(k={int(held['k'].data)}{signed}{by})"
        if "batch_k" in held:
            return f"BatchTopK(k={int(held['batch_k'].data)})"
        return "JumpReLU" if "threshold" in held else "ReLU"

    @cached_property
    def coder(self) -> SparseCoder:
        """The coder, on the CPU."""
        return SparseCoder(**{name: tensor.data for name, tensor in self.tensors.items()})

    def coder_on(self, x: Tensor) -> SparseCoder:
        """The coder where an activation is."""
        if x.device.type == "cpu":
            return self.coder
        moved = self.__dict__.setdefault("_moved", {})  # frozen: a cache, no part of the value
        if x.device not in moved:
            moved[x.device] = SparseCoder.of(self.coder.tensors, x.device)
        return moved[x.device]

    # ------------------------------------------------------------------ coding

    def encode(self, x: Float[Tensor, "*places d_in"]) -> Float[Tensor, "*places features"]:
        """The features of activations; heads, `[..., heads, d_head]`, are put side by side.

        Raises:
            DictionaryError: Activations of another width.
        """
        flat = self._flat(x, self.d_in)
        return self.coder_on(flat).encode(flat)

    def decode(
        self,
        features: Float[Tensor, "*places features"],
        x: Float[Tensor, "*places d_in"] | None = None,
    ) -> Float[Tensor, "*places d_out"]:
        """The activation that features stand for.

        Args:
            features: The features.
            x: What was encoded; a transcoder with a skip connection needs it.

        Raises:
            DictionaryError: Another number of features, or no `x` where it is needed.
        """
        if features.shape[-1] != self.n_features:
            raise DictionaryError(
                f"This dictionary has {self.n_features} features, not {features.shape[-1]}."
            )
        if "w_skip" in self.tensors and x is None:
            raise DictionaryError("This transcoder has a skip connection: decode(features, x).")
        x = None if x is None else self._flat(x, self.d_in)
        return self.coder_on(features).decode(features, x)

    def error(
        self, x: Float[Tensor, "*places d_in"], y: Float[Tensor, "*places d_out"] | None = None
    ) -> Float[Tensor, "*places d_out"]:
        """What is not reconstructed: `y - decode(encode(x))`.

        Args:
            x: What is encoded.
            y: What is to be reconstructed, for a transcoder; `x` for an autoencoder.

        Raises:
            DictionaryError: A transcoder without `y`.
        """
        if y is None and self.transcodes:
            raise DictionaryError(
                f"This transcoder reads {self.point} and reconstructs {self.point_out}: give the "
                "activation there too, error(x, y)."
            )
        y = self._flat(x if y is None else y, self.d_out)
        return y - self.decode(self.encode(x), x).to(y.dtype)

    def direction(self, feature: SupportsIndex) -> Float[Tensor, " d_out"]:
        """What a feature of 1 adds to `point_out`: its row of `w_dec`.

        Raises:
            DictionaryError: No such feature.
        """
        (number,) = self.numbers(feature)
        return self.coder.w_dec[number]

    def numbers(self, features: SupportsIndex | list | tuple | range) -> tuple[int, ...]:
        """Features as a tuple of numbers.

        Raises:
            DictionaryError: No such feature, or one twice.
        """
        chosen = as_integers(features, "A feature", DictionaryError)
        if wrong := [f for f in chosen if not 0 <= f < self.n_features]:
            raise DictionaryError(
                f"This dictionary has features 0..{self.n_features - 1}; {wrong[0]} was asked."
            )
        if len(set(chosen)) < len(chosen):
            raise DictionaryError(f"A feature is named twice in {list(chosen)}.")
        return chosen

    def _flat(self, x: Tensor, width: int) -> Tensor:
        if x.shape[-1] == width:
            return x
        if x.dim() > 1 and x.shape[-2] * x.shape[-1] == width:
            return x.flatten(-2)
        raise DictionaryError(
            f"This dictionary takes activations of width {width}; these are {list(x.shape)}."
        )

    # ------------------------------------------------------------------ on a model

    def point_on(self, vlm: HookedModel, *, out: bool = False) -> Point:
        """The point of a model that the dictionary reads, checked.

        Args:
            vlm: The model.
            out: The point that it reconstructs, instead.

        Raises:
            VLMLensError: The model has no such point, or it is refused by `check_point`.
        """
        point = vlm.architecture.points[self.point_out if out else self.point]
        self.check_point(point, out=out)
        return point

    def check_point(self, point: Point, *, out: bool = False) -> None:
        """Refuses a point that the dictionary does not fit.

        Args:
            point: The point.
            out: Whether it is the one to be reconstructed.

        Raises:
            DictionaryError: It is of another width, or not the output of the module that the
                dictionary was made for.
        """
        width, here = self.d_out if out else self.d_in, point.sizes[2:]
        if None in here or math.prod(here) != width:  # type: ignore[arg-type]
            raise DictionaryError(
                f"This dictionary is of width {width}, and {point.name} of this model is "
                f"{point.shape}. It belongs to {self._origin()}; "
                "Dictionary.from_pretrained(..., point=...) names another point."
            )
        self._check_module(point, out=out)

    def _check_module(self, point: Point, *, out: bool) -> None:
        module = getattr(point.site, "module", None)
        if not self.module or not isinstance(module, str) or (self.transcodes and not out):
            return
        if not f".{module}".endswith(f".{self.module}"):
            raise DictionaryError(
                f"This dictionary was made for the output of {self.module}, and {point.name} of "
                f"this model is taken at {module}: give the point that is meant, "
                "Dictionary.from_pretrained(..., point=...)."
            )

    def _origin(self) -> str:
        return " ".join(f"{k} {v}" for k, v in self.about.items()) or "a model that is not named"

    def __repr__(self) -> str:
        where = f"{self.point} -> {self.point_out}" if self.transcodes else self.point
        kind = "transcoder" if self.transcodes else "autoencoder"
        return (
            f"Dictionary({kind}, {self.n_features} features of {where} [{self.d_in}], "
            f"{self.activation}; {self._origin()})"
        )


__all__ = ["DictionaryError", "DictionaryValue"]
