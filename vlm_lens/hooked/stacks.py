"""What users of TransformerLens ask a cache for: stacks of what makes up the residual stream.

Names, arguments and shapes are TransformerLens's. Three things differ, because weights stay as the
checkpoint has them: the first component is what the first block reads, with pictures in their
places; a norm applied to a stack includes its weight (there it is folded into the next one); and
`logit_attrs` is the share of the model's own logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import PointError
from vlm_lens.integers import as_integer
from vlm_lens.points.placement import called, together
from vlm_lens.stream.norm import FrozenNorm, frozen
from vlm_lens.stream.parts import ADDED, ATTENTION, BLOCK, INPUT, MLP, Stream
from vlm_lens.stream.readout import rows
from vlm_lens.stream.refusal import StreamError

if TYPE_CHECKING:
    from vlm_lens.families import Architecture

PosSlice = int | slice | Sequence[int] | None
Owner = Callable[[], "tuple[nn.Module, Architecture, Callable[[str | int], int]] | None"]
_MODES = {"all": {ATTENTION, MLP}, "attn": {ATTENTION}, "mlp": {MLP}}
_LABELS = {ATTENTION: "attn_out", MLP: "mlp_out", BLOCK: "block", ADDED: "added"}


class Stacks:
    """Stacks of components of the language model's residual stream, out of a cache.

    Attributes:
        owner: Gives the model, its parts, and what makes a token's id of what a user writes.
    """

    owner: Owner | None

    def __getitem__(self, name: str | tuple) -> Tensor:
        """An activation that was read."""
        raise NotImplementedError

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Tensor | tuple[Tensor, list[str]]:
        """The residual stream as it enters each block, `[component, batch, pos, d_model]`.

        Args:
            layer: Up to what enters this block; `None`, -1 or the number of blocks for all, with
                what leaves the last (`final_post`).
            incl_mid: Whether the stream between attention and MLP is included.
            apply_ln: Whether the final norm is applied, with the statistics of each.
            pos_slice: Which positions, of those that the cache kept.
            mlp_input: Whether the stream between attention and MLP of `layer` is included.
            return_labels: Whether labels are returned, too.

        Raises:
            VLMLensError: A point was not read, or there is no such block.
        """
        n_layers, labels, found = self._n_layers(layer), [], []
        for i in range(n_layers + 1):
            if i == self._depth:
                found.append(self["resid_post", i - 1])
                labels.append("final_post")
                continue
            found.append(self["resid_pre", i])
            labels.append(f"{i}_pre")
            if (incl_mid and i < n_layers) or (mlp_input and i == n_layers):
                found.append(self["resid_mid", i])
                labels.append(f"{i}_mid")
        stack = torch.stack([_sliced(x, pos_slice) for x in together(found)])
        if apply_ln:
            if n_layers < self._depth:
                stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
            else:
                stack = torch.stack(
                    [called(self._norm(None, False), x).to(x.device) for x in stack]
                )
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Tensor | tuple[Tensor, list[str]]:
        """What makes up the stream that enters a block, `[component, batch, pos, d_model]`.

        Args:
            layer: Which block; `None`, -1 or the number of blocks for what leaves the last.
            mlp_input: Whether what attention of `layer` adds is included.
            mode: `"all"`, `"attn"` or `"mlp"`.
            apply_ln: Whether the norm that reads this stream is applied, its scale held.
            pos_slice: Which positions, of those that the cache kept.
            incl_embeds: Whether what the first block reads is included, as `embed`.
            return_labels: Whether labels are returned, too.

        Raises:
            VLMLensError: A point was not read, or there is no such block.
        """
        if mode not in _MODES:
            raise StreamError(f"mode is one of {', '.join(_MODES)}, not {mode!r}.")
        n_layers, stream, kinds = self._n_layers(layer), self._stream, _MODES[mode]
        kinds = kinds | {BLOCK, ADDED} if mode == "all" else kinds
        dtype, labels, found = self["resid_pre", 0].dtype, [], []
        for part in stream.parts(self, n_layers, by_head=False):  # type: ignore[arg-type]
            if part.kind in kinds or (part.kind == INPUT and incl_embeds):
                found.append(part.values[0].to(dtype))
                labels.append(
                    "embed" if part.layer is None else f"{part.layer}_{_LABELS[part.kind]}"
                )
        if mlp_input and ATTENTION in kinds:
            found.append(self["attn_out", n_layers])
            labels.append(f"{n_layers}_attn_out")
        stack = torch.stack([_sliced(x, pos_slice) for x in together(found)])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return (stack, labels) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Tensor | tuple[Tensor, list[str]]:
        """What each head of the blocks before `layer` adds, `[layer * head, batch, pos, d_model]`.

        Args:
            layer: Which block; -1, `None` or the number of blocks for all.
            return_labels: Whether labels, `L0H1`, are returned, too.
            incl_remainder: Whether the rest of the stream is the last component.
            pos_slice: Which positions, of those that the cache kept.
            apply_ln: Whether the norm that reads this stream is applied, its scale held.

        Raises:
            VLMLensError: A point was not read, or a block's heads cannot be told apart.
        """
        n_layers, stream = self._n_layers(layer), self._stream
        labels: list[str] = []
        found = [self["resid_pre", 0][None][:0]]
        for i in range(n_layers):
            reaching = stream.heads(
                {stream.name(i, n): self[stream.name(i, n)]
                 for n in ("attn.hook_z", "hook_attn_out")}, i)  # fmt: skip
            if reaching is None:
                raise StreamError(f"Block {i} has no heads to stack: {stream.why_whole[i]}")
            each, _ = reaching.of(self["z", i])
            found.append(each.to(found[0]))
            labels += [f"L{i}H{h}" for h in range(len(each))]
        stack = torch.cat(found)
        if incl_remainder:
            end = self["resid_post", n_layers - 1] if n_layers else self["resid_pre", 0]
            stack = torch.cat([stack, (end.to(stack.device) - stack.sum(0))[None]])
            labels.append("remainder")
        stack = _sliced(stack, pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
    ) -> Tensor:
        """A stack as the norm that reads this stream makes it, with the scale that it had there.

        Args:
            residual_stack: `[component, batch, pos, d_model]`.
            layer: The block whose norm is meant; `None` or -1 for the final norm.
            mlp_input: Whether the norm before the MLP is meant, not the one before attention.
            pos_slice: The positions that were chosen for the stack.

        Raises:
            VLMLensError: A point was not read, or the norm is none that can be held.
        """
        norm = self._frozen(layer, mlp_input, pos_slice, residual_stack.device)
        return norm.of_part(residual_stack.double()).to(residual_stack.dtype)

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Sequence[str | int] | Tensor,
        incorrect_tokens: str | int | Sequence[str | int] | Tensor | None = None,
        pos_slice: PosSlice = None,
    ) -> Tensor:
        """What each component adds to a logit, or a difference of two, `[component, batch, pos]`.

        Args:
            residual_stack: `[component, batch, pos, d_model]`.
            tokens: One token, or one for each row.
            incorrect_tokens: Whose logit is taken off, likewise.
            pos_slice: The positions that were chosen for the stack.

        Raises:
            VLMLensError: No such token, or a norm or output layer that cannot be held.
        """
        model, arch, to_id = self._owned()

        def directions(given: str | int | Sequence[str | int] | Tensor) -> Tensor:
            listed = given.tolist() if isinstance(given, Tensor) else given
            each: Any = [listed] if isinstance(listed, str | int) else listed
            ids = [to_id(token) for token in each]
            if len(ids) not in (1, residual_stack.shape[1]):
                raise StreamError(
                    f"{len(ids)} tokens were given for {residual_stack.shape[1]} rows: give one, "
                    "or one for each row."
                )
            found = rows(model, arch, ids)[0].to(residual_stack.device)
            return found if residual_stack.dim() == 3 else found[:, None]

        along = directions(tokens)
        if incorrect_tokens is not None:
            along = along - directions(incorrect_tokens)
        norm = self._frozen(None, False, pos_slice, residual_stack.device)
        normed = norm.of_part(residual_stack.double())
        return (normed * along).sum(-1).to(residual_stack.dtype)

    # ------------------------------------------------------------------ what they need

    def _owned(self) -> tuple[nn.Module, Architecture, Callable[[str | int], int]]:
        owner = self.owner() if self.owner is not None else None
        if owner is None:
            raise StreamError(
                "The model of this cache is gone (or it was read from a file), and its weights are "
                "needed for this: keep the HookedVLM while you work with what it has read."
            )
        return owner

    @property
    def _stream(self) -> Stream:
        model, arch, _ = self._owned()
        return Stream(model, arch)

    @property
    def _depth(self) -> int:
        return self._owned()[1].cfg.n_layers

    def _n_layers(self, layer: int | None) -> int:
        depth = self._depth
        number = depth if layer is None else as_integer(layer, "layer", StreamError)
        number = depth if number == -1 else number
        if not 0 <= number <= depth:
            raise StreamError(f"layer={layer}: blocks are 0 to {depth - 1}; -1 means all of them.")
        return number

    def _norm(self, layer: int | None, mlp_input: bool) -> nn.Module:
        model, arch, _ = self._owned()
        n_layers = self._n_layers(layer)
        if n_layers < arch.cfg.n_layers:
            name = f"blocks.{n_layers}.ln{2 if mlp_input else 1}.hook_normalized"
            return model.get_submodule(arch.points[name].site.module)
        if mlp_input:
            raise PointError("The final norm reads what leaves the last block: no mlp_input.")
        return arch.final_norm(model)

    def _frozen(
        self, layer: int | None, mlp_input: bool, pos_slice: PosSlice, device: torch.device
    ) -> FrozenNorm:
        n_layers = self._n_layers(layer)
        if n_layers == self._depth:
            x = self["resid_post", n_layers - 1]
        else:
            x = self["resid_mid" if mlp_input else "resid_pre", n_layers]
        return frozen(self._norm(layer, mlp_input), _sliced(x, pos_slice).to(device))


def _sliced(x: Tensor, pos_slice: PosSlice) -> Tensor:
    """The positions that are wanted, of the last axis but one; a single one drops the axis."""
    if pos_slice is None:
        return x
    if isinstance(pos_slice, slice):
        return x[..., pos_slice, :]
    if isinstance(pos_slice, int):
        return x[..., pos_slice, :]
    return x[..., list(pos_slice), :]
