"""The tuned lens: at each layer an affine map into the last layer's space, learned by KL.

```
T_l h = h + A_l h + b_l          min KL(model's output || head(T_l h));  T_last = 1
```

Belrose et al. 2023, arXiv 2303.08112. A lens fitted on text has never seen a state that stands for
a patch: fit it on prompts with pictures, and read `report`, which tells the kinds apart.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import answering
from vlm_lens.lenses.base import LensError
from vlm_lens.lenses.fitted import WHOLE, FittedLens, groups
from vlm_lens.lenses.logit_lens import LogitLens
from vlm_lens.points.sites import submodule
from vlm_lens.serial import FrozenTensor, savable
from vlm_lens.storage.files import read_json

_CONFIG, _PARAMS = "config.json", "params.pt"  # as the package tuned-lens names them


@savable
@dataclass(frozen=True)
class TunedLens(FittedLens):
    """Decodes each layer through an affine map that was learned for it."""

    residual: ClassVar[bool] = True

    @classmethod
    @answering
    def fit(
        cls,
        vlm: HookedModel,
        prompts: Any,
        *,
        kinds: str | None = None,
        points: str | tuple[str, ...] = "blocks.*.hook_resid_post",
        steps: int = 300,
        lr: float = 1e-3,
        batch_size: int = 16,
        positions: int = 512,
        heldout: float = 0.2,
        seed: int = 0,
        save: str | Path | None = None,
        checkpoint: int = 50,
        progress: bool = True,
    ) -> Self:
        """Learns the maps on prompts.

        All start from the identity; the learning rate falls to 0. States are used and dropped, so
        memory does not grow with the number of prompts.

        Args:
            vlm: A HookedVLM.
            prompts: Texts, RawPrompts or Prompts, at least two.
            kinds: `"each"` learns a map for pictures and one for text at each layer.
            points: Which points get a map; the last block's output needs none.
            steps: How many steps of Adam.
            lr: The learning rate of the first.
            batch_size: How many prompts a step runs, at the most.
            positions: How many of their positions it takes, at the most.
            heldout: The share of the prompts on which `report` is measured.
            seed: Of the split, the order of the prompts and the choice of positions.
            save: A folder for checkpoints: a fit that was killed goes on from there.
            checkpoint: After how many steps one is written.
            progress: Whether to show a progress bar.

        Returns:
            The lens; `report` has its KL and the logit lens's by layer and kind of position.

        Raises:
            LensError: Too few prompts, or a setting that cannot be.
        """
        from vlm_lens.lenses.tuned_fit import Settings, fit

        groups(kinds)
        settings = Settings(steps, lr, batch_size, positions, heldout, seed, checkpoint)
        last = vlm.architecture.points.match(["blocks.*.hook_resid_post"])[-1]
        fitted_at = [name for name in LogitLens(points).names(vlm) if name != last]
        if not fitted_at:
            raise LensError(f"The last block needs no map, and {points!r} holds no other point.")
        found = fit(vlm, prompts, fitted_at, kinds, settings, save, progress=progress)
        return cls(
            points=points,
            weights={key: FrozenTensor(w) for key, w in found.weights.items()},
            biases={key: FrozenTensor(b) for key, b in found.biases.items()},
            source=vlm.facts,
            kinds=kinds,
            about={"steps": steps, "lr": lr, "seed": seed, "report": tuple(found.report)},
        )

    @classmethod
    @answering
    def from_published(
        cls, folder: str | Path, vlm: HookedModel, *, allow_transfer: bool = False
    ) -> Self:
        """Reads a lens that the package `tuned-lens` has saved: config.json and params.pt.

        Tensors alone are unpickled (`weights_only`), nothing in the file is run. Its translator 0
        reads the embedding (`hook_merged` here), translator i the output of block i - 1.

        Args:
            folder: Where the two files are.
            vlm: The model that it belongs to.
            allow_transfer: Lets a lens of another output layer be used.

        Raises:
            LensError: No such files, a lens of another model, or one of another kind.
        """
        folder = Path(folder)
        config = read_json(folder / _CONFIG)
        kind = config.get("lens_type", "linear_tuned_lens")
        if kind != "linear_tuned_lens":
            raise LensError(f"{folder} holds a {kind!r}; linear_tuned_lens is what is read here.")
        sizes = config.get("d_model"), config.get("num_hidden_layers")
        if sizes != (vlm.cfg.d_model, vlm.cfg.n_layers):
            raise LensError(
                f"The lens in {folder} is for {sizes[1]} blocks of width {sizes[0]}; {vlm.name} "
                f"has {vlm.cfg.n_layers} of width {vlm.cfg.d_model}."
            )
        known = config.get("unembed_hash")
        if known and known != published_hash(vlm) and not allow_transfer:
            raise LensError(
                f"The lens in {folder} was fitted on {config.get('base_model_name_or_path')!r}, "
                f"whose output layer is not that of {vlm.name} by its hash. If it is all the same, "
                "write allow_transfer=True."
            )
        try:
            state = torch.load(folder / _PARAMS, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise LensError(f"{folder / _PARAMS} cannot be read: {error}.") from None
        posts = vlm.architecture.points.match(["blocks.*.hook_resid_post"])
        names = ["hook_merged", *posts[:-1]]
        try:
            weights = {f"{n}/{WHOLE}": state[f"{i}.weight"] for i, n in enumerate(names)}
            biases = {
                f"{n}/{WHOLE}": state[f"{i}.bias"]
                for i, n in enumerate(names)
                if f"{i}.bias" in state
            }
        except KeyError as error:
            raise LensError(f"{folder / _PARAMS} has no {error}.") from None
        return cls(
            weights={key: FrozenTensor(w) for key, w in weights.items()},
            biases={key: FrozenTensor(b) for key, b in biases.items()},
            source=vlm.facts,
            about={"read from": str(folder), **config},
        )


def published_hash(vlm: HookedModel) -> str:
    """The package tuned-lens's hash of an output layer: of its numbers as numpy prints them."""
    weight = submodule(vlm.hf_model, vlm.architecture.unembed).weight
    shown = np.array_str(weight.detach().cpu().float().numpy(), precision=1)
    return hashlib.sha256(shown.encode()).hexdigest()


__all__ = ["TunedLens", "published_hash"]
