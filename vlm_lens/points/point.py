"""What a point is, and the short forms of its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vlm_lens.errors import PointError
from vlm_lens.points.sites import AttentionSite, Site

_BLOCK = re.compile(r"^(?P<prefix>.*?)blocks\.(?P<layer>\d+)\.(?P<rest>.+)$")
_IN_ATTENTION = {"q", "k", "v", "z", "pattern", "attn_scores"}
_IN_MLP = {"pre": "pre", "post": "post", "pre_linear": "pre_linear", "mlp_pre": "pre",
           "mlp_post": "post"}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A named activation of a model.

    Attributes:
        name: Its name, the same on every family, for example `blocks.3.hook_resid_post`.
        axes: The names of its axes, for example `("batch", "pos", "d_model")`.
        sizes: The size of each axis, `None` where it depends on the prompt.
        doc: What it is, in one sentence.
        site: Where it lives in the module tree.
        space: Whose positions its `pos` axis counts: `"text"` for the language model (of an
            encoder-decoder: the decoder), `"encoder"` for what its encoder reads, `"vision"` for
            the tower, `"projector"` for the projector's output.
        read_only: Why a write has no meaning here; empty where it has.
        pictures_only: Whether it is computed only where a prompt has pictures, although its
            positions are the text's: a block of cross-attention.
        keys: Of scores and patterns, whose positions the keys are, where they are of another
            sequence than the queries.
        both_ways: Of scores and patterns, whether queries see later positions of a prompt, too.
    """

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]
    doc: str
    site: Site = field(repr=False)
    space: str = "text"
    read_only: str = ""
    pictures_only: bool = False
    keys: str = ""
    both_ways: bool = False

    @property
    def needs_pictures(self) -> bool:
        """Whether a prompt without pictures does not compute it."""
        return self.pictures_only or self.space not in ("text", "encoder")

    @property
    def layer(self) -> int | None:
        """The 0-based block, `None` outside the blocks."""
        match = _BLOCK.match(self.name)
        return int(match["layer"]) if match else None

    @property
    def kind(self) -> str:
        """The name without its layer: `resid_post`, `attn.q`, `vision.resid_post`, `merged`."""
        match = _BLOCK.match(self.name)
        name = match["prefix"] + match["rest"] if match else self.name
        return name.replace("hook_", "")

    @property
    def writable(self) -> bool:
        """Whether a write to it means anything."""
        return not self.read_only

    @property
    def has_heads(self) -> bool:
        """Whether one of its axes counts attention heads."""
        return "head" in self.axes

    @property
    def on_demand(self) -> bool:
        """Whether it costs extra to compute (attention scores and patterns)."""
        return isinstance(self.site, AttentionSite)

    @property
    def shape(self) -> str:
        """The shape as text, for example `[batch, pos, 96]`."""
        parts = (a if s is None else str(s) for a, s in zip(self.axes, self.sizes, strict=True))
        return f"[{', '.join(parts)}]"


def expand_name(name: str | tuple) -> str:
    """The full name (or glob) for TransformerLens's short forms.

    `("resid_post", 3)` and `("resid_post", 3, "blocks")` give `blocks.3.hook_resid_post`;
    `("q", 3)` gives `blocks.3.attn.hook_q`; `("vision.resid_post", 3)` works on the tower. A string
    is returned unchanged.
    """
    if isinstance(name, str):
        return name
    if (
        not isinstance(name, tuple | list)
        or not 1 <= len(name) <= 3
        or not isinstance(name[0], str)
    ):
        raise PointError(f"{name!r:.60} is not a point: write a name, or (short name, layer).")
    short, layer = name[0], name[1] if len(name) > 1 else None
    *parents, short = short.split(".")
    short = short.removeprefix("hook_")
    if layer is None:
        return ".".join([*parents, f"hook_{short}"])
    if parents and parents[-1] in {"attn", "mlp", "ln1", "ln2"}:
        own = f"{parents.pop()}."
        prefix = "".join(f"{p}." for p in parents)
        return f"{prefix}blocks.{layer}.{own}hook_{short}"
    prefix = "".join(f"{p}." for p in parents)
    if short in _IN_ATTENTION:
        return f"{prefix}blocks.{layer}.attn.hook_{short}"
    if short in _IN_MLP:
        return f"{prefix}blocks.{layer}.mlp.hook_{_IN_MLP[short]}"
    if short in {"normalized1", "normalized2"}:
        return f"{prefix}blocks.{layer}.ln{short[-1]}.hook_normalized"
    return f"{prefix}blocks.{layer}.hook_{short}"
