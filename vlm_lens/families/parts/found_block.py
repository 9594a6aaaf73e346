"""One block whose parts are being found, and its modules as they were called."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from vlm_lens.families.parts.recording import Call
from vlm_lens.families.parts.stack import SiteMaker
from vlm_lens.points.sites import FlatView, InputSite, OutputSite, View

ATTENTION = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores",
             "attn.hook_pattern", "attn.hook_z")  # fmt: skip
MLP = ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post")


@dataclass
class Block:
    """One block.

    Attributes:
        sites: Its points, beside the stream entering and leaving it: name -> function from the
            block's path to the site.
        lacks: What it does not have: name -> reason.
        read_only: Points that cannot be written: name -> reason.
        n_heads: Heads, where attention was found.
        n_key_value_heads: Heads of keys and values.
        d_head: Width of a head.
        d_mlp: Neurons, where an MLP was found.
        first_norm: The norm before attention.
        norms_sums: Whether the block norms each sum before it goes on.
        cross_sizes: Heads, key heads and width of a head of its attention to another sequence.
    """

    sites: dict[str, SiteMaker] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    read_only: dict[str, str] = field(default_factory=dict)
    n_heads: int | None = None
    n_key_value_heads: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    first_norm: str = ""
    norms_sums: bool = False
    cross_sizes: tuple[int | None, int | None, int | None] | None = None

    def lack(self, names: tuple[str, ...], reason: str) -> None:
        """Declares points missing that were not found."""
        for name in names:
            if name not in self.sites:
                self.lacks.setdefault(name, reason)


@dataclass(frozen=True)
class Part:
    """A module within a block and its call.

    Attributes:
        name: Its path from the block.
        module: It.
        call: Its call.
        single: Whether tensors of two axes are one sequence, rather than rows one after the other.
    """

    name: str
    module: nn.Module
    call: Call
    single: bool = False

    def flat(self, value: Tensor, view: View | None = None) -> View | None:
        """A view for a tensor of the part: with an axis of rows, where it has none."""
        return FlatView(view, single=self.single) if value.dim() == 2 else view

    def entering(self, value: Tensor, view: View | None = None) -> SiteMaker | None:
        """The site of the argument that holds a value."""
        key = self.call.argument(value)
        if key is None:
            return None
        view = self.flat(self.call.given[key], view)
        index, keyword = (key, "hidden_states") if isinstance(key, int) else (99, key)
        return lambda block: InputSite(f"{block}.{self.name}", keyword, index, view)

    def leaving(self, view: View | None = None) -> SiteMaker:
        """The site of what it gives."""
        if self.call.gave is not None:
            view = self.flat(self.call.gave, view)
        return lambda block: OutputSite(f"{block}.{self.name}", view=view)


def norm_like(part: Part) -> bool:
    """Whether a module has weights of one axis alone, or none: no projection."""
    return all(w.dim() == 1 for w in part.module.parameters())
