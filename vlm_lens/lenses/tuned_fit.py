"""Fits a tuned lens: every translator at once, on states that are read, used and dropped.

```
loss = mean over positions of KL(model's output || head(h + A h + b))        A = 0, b = 0 at first
```

A step runs a batch of prompts and takes some of its positions, so that memory does not grow with
the number of prompts. Which batch and which positions hangs on the seed and the step alone: a fit
that was killed goes on from its last checkpoint and ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vlm_lens.gradients import recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.lenses.base import LensError
from vlm_lens.lenses.fitted import fit_folder, group_of, groups, positions_read
from vlm_lens.lenses.logit_lens import decoded, kl_to
from vlm_lens.reading.many import as_list, batches, made_or_raw
from vlm_lens.storage.files import read_tensors, write_tensors

_STATE = "state.safetensors"


@dataclass(frozen=True)
class Settings:
    """How a tuned lens is fitted; see `TunedLens.fit`."""

    steps: int
    lr: float
    batch_size: int
    positions: int
    heldout: float
    seed: int
    checkpoint: int

    def __post_init__(self):
        for name in ("steps", "batch_size", "positions", "checkpoint"):
            if as_integer(getattr(self, name), name, LensError) < 1:
                raise LensError(f"{name} is at least 1, not {getattr(self, name)}.")
        if not 0 < self.heldout < 1:
            raise LensError(f"heldout is a share of the prompts, 0.2 say, not {self.heldout}.")
        if not self.lr > 0:
            raise LensError(f"lr, the learning rate, is above 0, not {self.lr}.")


@dataclass(frozen=True)
class Fitted:
    """What a fit gives: the matrices and vectors by `"point/group"`, and KL on held-out prompts."""

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    report: list[dict[str, Any]]


def fit(
    vlm: HookedModel,
    prompts: Any,
    points: Sequence[str],
    kinds: str | None,
    settings: Settings,
    folder: str | Path | None,
    *,
    progress: bool,
) -> Fitted:
    """Fits the translators of some points; see `TunedLens.fit`."""
    listed = made_or_raw(vlm, as_list(prompts))
    if len(listed) < 2:
        raise LensError(
            f"A tuned lens is fitted on prompts and measured on others; {len(listed)} was given."
        )
    order = np.random.RandomState(settings.seed).permutation(len(listed))
    n_held = min(max(1, round(settings.heldout * len(listed))), len(listed) - 1)
    held, train = ([listed[i] for i in part] for part in (order[:n_held], order[n_held:]))
    fitting = _Fit(vlm, points, kinds, settings, train)
    asked = {k: v for k, v in asdict(settings).items() if k != "checkpoint"}
    opened = fit_folder(
        folder, vlm, listed, "a fit of a tuned lens", points=list(points), kinds=kinds,
        settings=asked,
    )  # fmt: skip
    with opened, vlm.reusing_pictures():
        fitting.run(None if folder is None else Path(folder), progress=progress)
        report = fitting.report(held)
    split = fitting.translators
    return Fitted(
        {key: pair[0].detach() for key, pair in split.items()},
        {key: pair[1].detach() for key, pair in split.items()},
        report,
    )


class _Fit:
    """The translators while they are fitted."""

    def __init__(
        self,
        vlm: HookedModel,
        points: Sequence[str],
        kinds: str | None,
        settings: Settings,
        train: Sequence[Any],
    ):
        self.vlm, self.points, self.kinds, self.settings = vlm, list(points), kinds, settings
        self.batches = list(batches(vlm, list(train), settings.batch_size))
        d, device = vlm.cfg.d_model, vlm.device
        self.translators = {
            f"{point}/{group}": (
                nn.Parameter(torch.zeros(d, d, device=device)),
                nn.Parameter(torch.zeros(d, device=device)),
            )
            for point in points
            for group in groups(kinds)
        }
        self.optimizer = torch.optim.Adam(
            [p for pair in self.translators.values() for p in pair], lr=settings.lr
        )
        self.seen: set[str] = set()

    def run(self, folder: Path | None, *, progress: bool) -> None:
        """All steps that are not done yet."""
        settings, first = self.settings, self._load(folder)
        steps = range(first, settings.steps)
        bar = tqdm(steps, initial=first, total=settings.steps, disable=not progress, unit="step")
        for step in bar:
            loss = self._step(step)
            bar.set_postfix(kl=f"{loss:.3f}")
            done = step + 1
            if folder and (done % settings.checkpoint == 0 or done == settings.steps):
                self._save(folder, done)
        unseen = [key for key in self.translators if key.rsplit("/", 1)[1] not in self.seen]
        for key in unseen:  # no such position: a map that was never trained is no map
            del self.translators[key]

    def _step(self, step: int) -> float:
        settings = self.settings
        epoch, number = divmod(step, len(self.batches))
        order = np.random.RandomState((settings.seed, epoch)).permutation(len(self.batches))
        states, final, kinds = self._states(self.batches[order[number]].prompts)
        draw = np.random.RandomState((settings.seed, epoch, number)).permutation(len(kinds))
        index = np.sort(draw[: settings.positions]).tolist()
        of = [group_of(kinds[i], self.kinds) for i in index]
        self.seen |= set(of)
        share = 1 - step / settings.steps  # of the learning rate: it falls to 0
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * share
        self.optimizer.zero_grad()
        total, goal = 0.0, final[index]
        for point in self.points:  # one layer's logits in memory at a time
            with recording():
                loss = self._kl(states[point][index], goal, point, of).mean()
            mine = [p for g in dict.fromkeys(of) for p in self.translators[f"{point}/{g}"]]
            for parameter, gradient in zip(mine, torch.autograd.grad(loss, mine), strict=True):
                parameter.grad = gradient
            total += float(loss.detach())
        self.optimizer.step()
        return total / len(self.points)

    @torch.no_grad()
    def _states(self, prompts: Any) -> tuple[dict[str, Tensor], Tensor, list[str]]:
        """States by point, the model's log-probabilities, and the kind of each position."""
        prompt = self.vlm.as_prompt(prompts)
        places = [(la.row, p) for la in prompt.layouts for p in positions_read(la)]
        kinds = [prompt.layouts[row].kinds[p] for row, p in places]
        rows, positions = zip(*places, strict=True)
        logits, cache = self.vlm.run_with_cache(prompt, names_filter=self.points)
        states = {
            name: cache[name][list(rows), list(positions)].to(logits.device) for name in self.points
        }
        return states, logits[list(rows), list(positions)].float().log_softmax(-1), kinds

    def _kl(self, states: Tensor, final: Tensor, point: str, of: Sequence[str]) -> Tensor:
        """KL(model || lens) at each position."""
        mapped = torch.zeros_like(states, dtype=torch.float32)
        for group in dict.fromkeys(of):
            index = [i for i, one in enumerate(of) if one == group]
            weight, bias = self.translators[f"{point}/{group}"]
            chosen = states[index].float()
            given = chosen + chosen @ weight.T + bias
            mapped = mapped.index_copy(0, torch.tensor(index, device=states.device), given)
        return kl_to(self._logprobs(mapped.to(states.dtype)), final)

    def _logprobs(self, states: Tensor) -> Tensor:
        return decoded(self.vlm, states).float().log_softmax(-1)

    @torch.no_grad()
    def report(self, held: Sequence[Any]) -> list[dict[str, Any]]:
        """KL to the model's output on held-out prompts, by point and kind of position."""
        sums: dict[tuple[str, str], np.ndarray] = {}
        for batch in batches(self.vlm, list(held), self.settings.batch_size):
            states, final, kinds = self._states(batch.prompts)
            for part in _parts(len(kinds), self.settings.positions):
                of = [group_of(kinds[i], self.kinds) for i in part]
                shown = [group_of(kinds[i], "each") for i in part]
                known = [i for i, group in enumerate(of) if group in self.seen]
                for point in self.points if known else ():
                    chosen = states[point][[part[i] for i in known]]
                    goal = final[[part[i] for i in known]]
                    lens = self._kl(chosen, goal, point, [of[i] for i in known]).detach()
                    logit = kl_to(self._logprobs(chosen), goal)
                    for i, a, b in zip(known, lens.tolist(), logit.tolist(), strict=True):
                        key = point, shown[i]
                        sums[key] = sums.get(key, 0) + np.array([a, b, 1.0])
        return [
            {"point": point, "kind": kind, "kl": float(a / n), "kl, logit lens": float(b / n),
             "positions": int(n)}
            for (point, kind), (a, b, n) in sorted(
                sums.items(), key=lambda item: (self.points.index(item[0][0]), item[0][1])
            )
        ]  # fmt: skip

    # ------------------------------------------------------------------ checkpoints

    def _save(self, folder: Path, step: int) -> None:
        tensors = {"step": torch.tensor(step)}
        tensors |= {f"seen/{group}": torch.tensor(1) for group in self.seen}
        for key, pair in self.translators.items():
            for part, parameter in zip(("weight", "bias"), pair, strict=True):
                tensors[f"{key}/{part}"] = parameter
                for name, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"{key}/{part}/{name}"] = value
        write_tensors(folder / _STATE, tensors)

    @torch.no_grad()
    def _load(self, folder: Path | None) -> int:
        """Takes up a checkpoint, if there is one; returns how many steps are done."""
        if folder is None or not (folder / _STATE).exists():
            return 0
        tensors, _ = read_tensors(folder / _STATE)
        self.seen = {key.removeprefix("seen/") for key in tensors if key.startswith("seen/")}
        for key, pair in self.translators.items():
            for part, parameter in zip(("weight", "bias"), pair, strict=True):
                parameter.copy_(tensors[f"{key}/{part}"])
                stem = f"{key}/{part}/"
                state = {k.removeprefix(stem): v for k, v in tensors.items() if k.startswith(stem)}
                if state:
                    moved = {k: v.to(parameter.device) for k, v in state.items() if k != "step"}
                    self.optimizer.state[parameter] = {"step": state["step"], **moved}
        return int(tensors["step"])


def _parts(n: int, size: int) -> Iterator[list[int]]:
    for start in range(0, n, size):
        yield list(range(start, min(start + size, n)))


__all__ = ["Fitted", "Settings", "fit"]
