"""Keys and values in a replay: those of the prefix recorded, those of the suffix computed."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_lens.engine.baseline import Baseline


class SuffixCache(DynamicCache):
    """Gives each block the recorded keys and values of the prefix before the suffix's own.

    Args:
        baseline: The recorded run.
        start: The first position of the suffix.
        prompt_rows: For each row of the batch, the prompt's row that it varies.
        keep: Whether the suffix's own keys and values are kept, for `whole`.
    """

    def __init__(self, baseline: Baseline, start: int, prompt_rows: Tensor, *, keep: bool):
        super().__init__()
        self._baseline, self._start, self._prompt_rows = baseline, start, prompt_rows
        self._keep = keep
        self._buffers: dict[tuple, Tensor] = {}  # filled anew by every block: allocated once
        self._suffixes: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Keys and values of the whole prompt, for a block that has just computed its own."""
        if self._keep:
            self._suffixes[layer_idx] = key_states, value_states
        if self._start == 0:
            return key_states, value_states
        rows = self._prompt_rows[: len(key_states)]
        prefix = self._baseline.prefix(layer_idx, self._start, rows)
        pairs = zip(("keys", "values"), prefix, (key_states, value_states), strict=True)
        return tuple(self._joined(*pair) for pair in pairs)

    def _joined(self, what: str, prefix: Tensor, suffix: Tensor) -> Tensor:
        key = (what, suffix.device, suffix.dtype, suffix.shape[1], suffix.shape[3])
        if key not in self._buffers:
            n_heads, length = suffix.shape[1], self._start + suffix.shape[2]
            shape = (len(self._prompt_rows), n_heads, length, suffix.shape[3])
            self._buffers[key] = suffix.new_empty(shape)
        whole = self._buffers[key][: len(suffix)]
        whole[:, :, : self._start] = prefix
        whole[:, :, self._start :] = suffix
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions come before those that are computed."""
        return self._start

    def whole(self, rows: Tensor) -> DynamicCache:
        """Keys and values of the whole prompt.

        Args:
            rows: The rows of the batch, in the order wanted.
        """
        baseline, start, whole = self._baseline, self._start, DynamicCache()
        for layer in range(baseline.n_layers):
            prefix = baseline.prefix(layer, start, self._prompt_rows)
            computed = self._suffixes.get(layer)
            n_computed = 0 if computed is None else len(computed[0])
            both = []
            for i, stored in enumerate((baseline.keys[layer], baseline.values[layer])):
                # rows that join at a later block have, here, what was recorded
                joined = self._prompt_rows[n_computed:].to(stored.device)
                suffix = stored[joined, :, start:]
                if computed is not None:
                    suffix = torch.cat([computed[i], suffix])
                both.append(torch.cat([prefix[i], suffix], -2)[rows.to(suffix.device)])
            whole.update(both[0], both[1], layer)
        return whole
