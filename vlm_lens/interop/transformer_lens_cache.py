"""TransformerLens's cache with what its tools get wrong corrected or refused.

Measured with version 4.3, on a bridge whose weights are as the checkpoint has them:

| tool | there | here |
|---|---|---|
| `apply_ln=True` but `accumulated_resid`'s, `logit_attrs` | without the norm's weight | with it |
| `apply_slice_to_batch_dim` | by what most tensors have: a tower, its crops | rows |
| `logit_attrs` | without the scale of logits (Cohere, Granite) | with it; before a cap |
| `stack_head_results`, neurons | before a norm that follows (Gemma) | refused |
| `decompose_resid`, `get_full_resid_decomposition` | without DeepStack, cross-attention | refused |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import ModelError, PointError

try:
    from transformer_lens import ActivationCache as TheirCache
    from transformer_lens.utilities import Slice
except ImportError as error:  # an extra
    raise ModelError(
        f"TransformerLens cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error

_WEIGHED = ("LN", "RMS")  # kinds of norms that have a weight of their own


@dataclass(frozen=True)
class Corrections:
    """What is to be known of a model beside its bridge.

    Attributes:
        n_rows: How many prompts the cache holds.
        by_row: The activations whose first axis counts them; those of a tower where each prompt
            shows one picture, in one row of it.
        unknown: What the stream receives beside attention and MLPs, in words.
        heads: Why what heads write is not what the stream receives.
        neurons: The same of neurons.
        logit_scale: What logits are multiplied by.
        head: Why logits are not what the output layer gives.
    """

    n_rows: int
    by_row: frozenset[str]
    unknown: str = ""
    heads: str = ""
    neurons: str = ""
    logit_scale: float = 1.0
    head: str = ""


class CacheOfVLM(TheirCache):
    """TransformerLens's cache of a run of `HookedVLM`; the module's head says what differs."""

    def __init__(
        self, values: dict[str, Tensor], bridge: Any, facts: Corrections, has_batch_dim: bool = True
    ):
        super().__init__(values, bridge, has_batch_dim)
        self._facts = facts

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> CacheOfVLM:
        """Some rows, with what is read of them.

        Activations of a tower whose rows are not the prompts' own pictures are left out.
        """
        chosen = batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)
        facts, whole = self._facts, chosen.mode == "empty"
        if not self.has_batch_dim and not whole:
            raise PointError("This cache holds one row without its axis: there is none to slice.")
        values = {
            name: chosen.apply(value, dim=0)
            for name, value in self.cache_dict.items()
            if whole or name in facts.by_row or name.endswith(".attn.hook_result")
        }
        n_rows = torch.arange(facts.n_rows)[chosen.slice].numel() if not whole else facts.n_rows
        return CacheOfVLM(
            values, self.model, replace(facts, n_rows=n_rows),
            has_batch_dim=self.has_batch_dim and chosen.mode != "int",
        )  # fmt: skip

    def _batch_size(self) -> int:
        return self._facts.n_rows

    # ------------------------------------------------------------------ norms and logits

    def apply_ln_to_stack(
        self, residual_stack: Tensor, layer: int | None = None, mlp_input: bool = False,
        *args: Any, recompute_ln: bool = False, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """As TransformerLens's, with the norm's weight; a bias is no part's."""
        stack = super().apply_ln_to_stack(
            residual_stack, layer, mlp_input, *args, recompute_ln=recompute_ln, **kwargs
        )
        weight = None if recompute_ln else self._weight(layer, mlp_input)  # the norm itself has it
        return stack if weight is None else stack * weight

    def _weight(self, layer: int | None, mlp_input: bool) -> Tensor | None:
        """The weight of the norm before a layer; none where it is in the weights that follow."""
        model = self.model
        if model.cfg.normalization_type not in _WEIGHED or getattr(
            model, "_weights_processed", False
        ):
            return None
        last = layer is None or layer in (-1, model.cfg.n_layers)
        norm: Any = model.ln_final if last else getattr(
            model.blocks[layer], "ln2" if mlp_input else "ln1"
        )  # fmt: skip
        return 1 + norm.weight if norm.uses_weight_offset else norm.weight

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Tensor:
        """As TransformerLens's, times the scale of logits; what they are before a cap.

        Raises:
            PointError: Logits are not what the output layer gives.
        """
        if self._facts.head:
            raise PointError(f"No logit can be shared out to parts: {self._facts.head}.")
        return super().logit_attrs(*args, **kwargs) * self._facts.logit_scale

    # ------------------------------------------------------------------ parts of the stream

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """As TransformerLens's, from the merged input on.

        Raises:
            PointError: The stream has parts that it does not know.
        """
        self._refuse(self._facts.unknown and f"leaves out {self._facts.unknown}", "decompose_resid")
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """As TransformerLens's, from the merged input on.

        Raises:
            PointError: The stream has parts that it does not know, or receives heads and neurons
                otherwise than they write.
        """
        facts, who = self._facts, "get_full_resid_decomposition"
        self._refuse(facts.unknown and f"leaves out {facts.unknown}", who)
        self._refuse(facts.heads or facts.neurons, who)
        return super().get_full_resid_decomposition(*args, **kwargs)

    def _ensure_head_results(self) -> bool:
        self._refuse(self._facts.heads, "stack_head_results")
        return super()._ensure_head_results()

    def get_neuron_results(self, *args: Any, **kwargs: Any) -> Tensor:
        """As TransformerLens's.

        Raises:
            PointError: The stream receives neurons otherwise than they write.
        """
        self._refuse(self._facts.neurons, "get_neuron_results")
        return super().get_neuron_results(*args, **kwargs)

    def _stack_neuron_results_apply_ln_projected(
        self, layer: int, pos_slice: Any, neuron_slice: Any, project_2d: Tensor,
        mlp_input: bool = False,
    ) -> Tensor:  # fmt: skip
        """A short cut of theirs past `apply_ln_to_stack`."""
        self._refuse(self._facts.neurons, "stack_neuron_results")
        weight = self._weight(layer, mlp_input)
        if weight is not None:
            project_2d = weight[:, None] * project_2d
        return super()._stack_neuron_results_apply_ln_projected(
            layer, pos_slice, neuron_slice, project_2d, mlp_input
        )

    def _refuse(self, why: str, who: str) -> None:
        if why:
            raise PointError(
                f"TransformerLens's {who}: {why}, so that its parts would not be what the stream "
                "receives: use vlm.decompose."
            )


__all__ = ["CacheOfVLM", "Corrections"]
