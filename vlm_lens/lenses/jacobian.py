"""The Jacobian lens: each layer through the mean derivative of the last one.

```
J_l = mean over prompts and sources t of  sum over targets t' >= t of  d h_last[t'] / d h_l[t]
read  W_U norm(J_l h)
```

Gurnee et al. 2026, as TransformerLens 4.3 has it for text: the sum is over targets, the mean over
sources. Sources that stand for a patch and sources that stand for text have means of their own
with `kinds="each"`. Where the positions of a picture attend to later ones too (Gemma 3), targets
before a source within its picture count as well.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_lens.gradients import recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.interventions.steer import Steer
from vlm_lens.layout.positions import All
from vlm_lens.lenses.base import LensError
from vlm_lens.lenses.fitted import WHOLE, FittedLens, fit_folder, group_of, groups, positions_read
from vlm_lens.lenses.logit_lens import LogitLens
from vlm_lens.reading.many import as_list, batches, made_or_raw
from vlm_lens.serial import FrozenTensor, savable
from vlm_lens.storage.files import read_tensors, write_tensors

_STATE = "state.safetensors"


@savable
@dataclass(frozen=True)
class JacobianLens(FittedLens):
    """Decodes each layer through the mean Jacobian from it to the last one."""

    @classmethod
    def fit(
        cls,
        vlm: HookedModel,
        prompts: Any,
        *,
        points: str | tuple[str, ...] = "blocks.*.hook_resid_post",
        kinds: str | None = None,
        batch_size: int = 8,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Takes the mean over prompts: `d_model` backward passes for each batch.

        Only sums are kept, so memory does not grow with the number of prompts.

        Args:
            vlm: A HookedVLM.
            prompts: Texts, RawPrompts or Prompts.
            kinds: `"each"` has a mean for sources in pictures and one for sources in text.
            points: Which points; the last block's output needs none.
            batch_size: How many prompts run together, at the most.
            save: A folder for the sums: a fit that was killed goes on from its last batch.
            progress: Whether to show a progress bar.

        Returns:
            The lens; `about` has how many sources each mean is of.

        Raises:
            LensError: No prompts, or a setting that cannot be.
        """
        last = vlm.architecture.points.match(["blocks.*.hook_resid_post"])[-1]
        names = [name for name in LogitLens(points).names(vlm) if name != last]
        listed = made_or_raw(vlm, as_list(prompts))
        if not listed:
            raise LensError("A Jacobian lens is fitted on at least one prompt.")
        if not names:
            raise LensError(f"The last block needs no map; {points!r} holds no other point.")
        if as_integer(batch_size, "batch_size", LensError) < 1:
            raise LensError(f"batch_size is at least 1, not {batch_size}.")
        sums = _Sums(names, groups(kinds), vlm.cfg.d_model, vlm.device)
        opened = fit_folder(
            save, vlm, listed, "a fit of a Jacobian lens", points=names, kinds=kinds,
            batch_size=batch_size,
        )  # fmt: skip
        with opened, vlm.reusing_pictures():
            todo = list(batches(vlm, listed, batch_size))
            first = sums.load(save)
            bar = tqdm(todo[first:], initial=first, total=len(todo), disable=not progress)
            for done, batch in enumerate(bar, start=first + 1):
                _add(vlm, batch.prompts, names, last, kinds, sums)
                sums.save(save, done)
        return cls(
            points=points,
            weights={key: FrozenTensor(mean) for key, mean in sums.means().items()},
            source=vlm.facts,
            kinds=kinds,
            about={"prompts": len(listed), "sources": dict(sums.counts)},
        )

    @classmethod
    def from_published(cls, path: str | Path, vlm: HookedModel) -> Self:
        """Reads a lens that TransformerLens, or the method's own code, has saved: one `.pt` file.

        Tensors alone are unpickled (`weights_only`), nothing in the file is run. The file says the
        width and the blocks of its model and not its weights, so that it is yours to know that it
        was fitted on `vlm`, or on the language model that `vlm` was made from.

        Args:
            path: The file: `J`, block -> `[d_model, d_model]`, or `jacobian_sum` with `n_done`.
            vlm: The model that it is used on.

        Raises:
            LensError: No such file, another kind of file, or a lens of another model.
        """
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise LensError(f"{path} cannot be read: {error}.") from None
        sums = held.get("jacobian_sum") if isinstance(held, dict) else None
        found = held.get("J", sums) if isinstance(held, dict) else None
        prompts = int(held.get("n_done" if found is sums else "n_prompts", 0)) if found else 0
        if not found or (found is sums and prompts < 1):
            raise LensError(f"{path} holds no Jacobian lens: it has neither J nor jacobian_sum.")
        width, last = vlm.cfg.d_model, vlm.cfg.n_layers - 1
        misfit = [m for m in found.values() if tuple(m.shape) != (width, width)]
        if misfit or max(map(int, found)) >= last or min(map(int, found)) < 0:
            size = list((misfit or list(found.values()))[0].shape)
            raise LensError(
                f"{path} holds maps {size} for blocks {min(found)} to {max(found)}; {vlm.name} has "
                f"{last + 1} blocks of width {width}, of which the last needs none."
            )
        weights = {
            f"blocks.{int(layer)}.hook_resid_post/{WHOLE}": FrozenTensor(
                matrix.float() / (prompts if found is sums else 1)
            )
            for layer, matrix in found.items()
        }
        about = {"prompts": prompts, "file": Path(path).name}
        points = tuple(key.rsplit("/", 1)[0] for key in weights)
        return cls(points=points, weights=weights, source=vlm.facts, about=about)


class _Sums:
    """Sums of Jacobians by point and group, and how many sources they are of."""

    def __init__(
        self, points: Sequence[str], of: Sequence[str], d_model: int, device: torch.device
    ):
        shape = (d_model, d_model)
        self.sums = {f"{p}/{g}": torch.zeros(shape, device=device) for p in points for g in of}
        self.counts = dict.fromkeys(of, 0)

    def means(self) -> dict[str, Tensor]:
        """The means, of groups that occurred."""
        found = {}
        for key, total in self.sums.items():
            if count := self.counts[key.rsplit("/", 1)[1]]:
                found[key] = total / count
        return found

    def save(self, folder: str | Path | None, done: int) -> None:
        """Writes the sums of the batches that are done."""
        if folder is None:
            return
        counts = {f"count/{group}": torch.tensor(n) for group, n in self.counts.items()}
        held = {**self.sums, **counts, "done": torch.tensor(done)}
        write_tensors(Path(folder) / _STATE, held)

    def load(self, folder: str | Path | None) -> int:
        """Takes up the sums of a folder, if there are some; returns how many batches are done."""
        path = Path(folder or ".") / _STATE
        if folder is None or not path.exists():
            return 0
        held, _ = read_tensors(path)
        for key, total in self.sums.items():
            total.copy_(held[key])
        self.counts = {group: int(held[f"count/{group}"]) for group in self.counts}
        return int(held["done"])


@recording()
def _add(
    vlm: HookedModel,
    prompts: Any,
    names: Sequence[str],
    last: str,
    kinds: str | None,
    sums: _Sums,
) -> None:
    """Adds the Jacobians of a batch, one row of each matrix a backward pass."""
    prompt = vlm.as_prompt(prompts)
    places = [(la.row, p) for la in prompt.layouts for p in positions_read(la)]
    of = [group_of(prompt.layouts[row].kinds[p], kinds) for row, p in places]
    rows, positions = (list(part) for part in zip(*places, strict=True))
    index = {group: [i for i, one in enumerate(of) if one == group] for group in sums.counts}
    # nothing is added, but there is a graph also where no weight requires one
    nothing = torch.zeros(vlm.cfg.d_model, device=vlm.device, dtype=vlm.dtype, requires_grad=True)
    _, cache = vlm.run_with_cache(
        prompt, names_filter=[*names, last], grad=True, last_logits=1,
        interventions=Steer("hook_merged", at=All(), vector=nothing),
    )  # fmt: skip
    states = [cache[name] for name in names]
    final = cache[last][rows, positions].sum(0)  # over all targets: a source reaches later ones
    for i in range(len(final)):
        gradients = torch.autograd.grad(final[i], states, retain_graph=i + 1 < len(final))
        for name, gradient in zip(names, gradients, strict=True):
            by_place = gradient[rows, positions].float()
            for group, chosen in index.items():
                total = sums.sums[f"{name}/{group}"]
                total[i] += by_place[chosen].sum(0).to(total.device)
    for group, chosen in index.items():
        sums.counts[group] += len(chosen)


__all__ = ["JacobianLens"]
