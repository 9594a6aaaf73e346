"""Runs a prompt, as it is and with vectors written, and keeps what the explorer shows.

The numbers are those of `vlm.run`, `vlm.attention` and `LogitLens`, under the same interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlm_lens.attention.parts import AttentionError, part_of
from vlm_lens.errors import VLMLensError
from vlm_lens.explorer.view import Resampled, Run, Scene
from vlm_lens.interventions import ActivationPatch
from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.positions import At, Last
from vlm_lens.lenses import LogitLens
from vlm_lens.measures.capture import Capture
from vlm_lens.reading.resampled import patch_weights
from vlm_lens.tokens import string_token

if TYPE_CHECKING:
    from vlm_lens.model.hooked_vlm import HookedVLM
    from vlm_lens.prompts.prompt import Prompt
    from vlm_lens.reading.vectors import TaskVector

K = 5  # tokens kept of each distribution
MOST = 2_000_000  # numbers of attention in one run
_SAME = 2e-6  # shares, and streams of their largest, that move by less are as they were


@dataclass(frozen=True, eq=False)
class Writable:
    """A vector that can be written.

    Attributes:
        value: The vector, every block at once.
        about: What it was read from, one sentence.
        judge: Token ids and the name of a scene -> which are right under the vector's task.
        expected: The name of a scene -> the right answer.
    """

    value: TaskVector
    about: str = ""
    judge: Callable[[torch.Tensor, str], np.ndarray] | None = None
    expected: Mapping[str, str] | None = None

    def write(self, block: int) -> ActivationPatch:
        """The vector in place of what the last position holds after a block."""
        return ActivationPatch(f"blocks.{block}.hook_resid_post", at=Last(), value=self.value)


class Reader:
    """Reads the runs of one prompt.

    Args:
        vlm: The model.
        prompt: A prompt of one row.
        name: What the scene is called.

    Raises:
        VLMLensError: A prompt of several rows.
    """

    def __init__(self, vlm: HookedVLM, prompt: Prompt, name: str = "prompt"):
        if len(prompt) != 1:
            raise VLMLensError(
                f"The explorer shows one prompt at a time; this is a batch of {len(prompt)} rows: "
                "give a list of prompts of one row."
            )
        self.vlm, self.prompt, self.name = vlm, prompt, name
        self.missing: dict[str, str] = {}
        self.sinks: tuple[int, ...] = ()

    def positions(self) -> tuple[int, ...]:
        """The positions that fit into one page: all, or the last ones."""
        layout = self.prompt.layout
        real = [i for i, kind in enumerate(layout.kinds) if kind != PAD]
        cfg = self.vlm.cfg
        fit = max(1, MOST // (cfg.n_layers * cfg.n_heads * len(layout)))
        return tuple(real[-fit:])

    def plain(self, positions: Sequence[int] | None = None) -> Run:
        """The run as it is, at some positions; by default at those that fit."""
        positions = self.positions() if positions is None else tuple(positions)
        at = self._at(positions)
        logits = self.vlm.run(self.prompt)[0, self.prompt.layout.last]
        lens_ids, lens_probs = self._lens(at)
        return Run(*_top(logits), positions, self._attention(at), lens_ids, lens_probs)

    def _at(self, positions: Sequence[int]) -> At:
        return At(tuple(p - self.prompt.layout.shifted for p in positions))

    def _attention(self, at: At) -> np.ndarray | None:
        try:
            found = self.vlm.attention(self.prompt, at=at)
        except AttentionError as error:
            self.missing["attention"] = str(error)
            return None
        self.sinks = tuple(found.marked.get("sinks", ()))
        values = found.values.to_numpy()
        return values if "query" in found.axes else values[:, :, None]

    def _lens(self, at: At) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            row = LogitLens(at=at, k=K).run(self.vlm, self.prompt).rows[0]
        except VLMLensError as error:
            self.missing["lens"] = str(error)
            return None, None
        return row.top_ids.numpy(), row.top_probs.numpy()

    def answers(self, vector: Writable, blocks: Sequence[int]) -> list[Run]:
        """The answers alone, with a vector written after each block."""
        edits = [vector.write(block) for block in blocks]
        swept = self.vlm.sweep(self.prompt, edits, measure="logits", progress=False)
        return [self._judged(Run(*_top(row[-1])), vector) for row in swept.stack("logits")]

    def _judged(self, run: Run, vector: Writable) -> Run:
        if vector.judge is None:
            return run
        return replace(run, right=vector.judge(torch.as_tensor(run.answer_ids), self.name))

    def written(self, plain: Run, vector: Writable, blocks: Sequence[int]) -> list[Run]:
        """The runs with a vector written after each block, at the positions that this changed."""
        edits = [vector.write(block) for block in blocks]
        streams = [f"blocks.{n}.hook_resid_post" for n in range(self.vlm.cfg.n_layers)]
        patterns = [f"blocks.{n}.attn.hook_pattern" for n in attention_blocks(self.vlm)]
        if plain.attention is None:
            patterns = []
        measure = Capture((*streams, *patterns), self._at(plain.positions))
        read = self.vlm.sweep(self.prompt, edits, measure=measure, progress=False)
        before = torch.stack([read.baseline[0][name] for name in streams])
        attended = (
            torch.stack([read.baseline[0][n] for n in patterns]).float() if patterns else None
        )
        runs = []
        for answered, record in zip(self.answers(vector, blocks), read.records, strict=True):
            after = torch.stack([record[name] for name in streams])  # [block, position, d_model]
            moved = ((after - before).abs() > _SAME * before.abs().amax(-1, keepdim=True)).any(0)
            moved = moved.any(-1)
            if patterns:
                shares = torch.stack([record[name] for name in patterns]).float()
                moved |= ((shares - attended).abs() > _SAME).any(0).any(0).any(-1)
            moved[plain.positions.index(self.prompt.layout.last)] = True
            here = moved.nonzero()[:, 0]
            found = replace(answered, positions=tuple(plain.positions[i] for i in here.tolist()))
            if patterns:
                found = replace(found, attention=shares[:, :, here].numpy())
            if plain.lens_ids is not None:
                decoded = self._decoded(after[:, here])
                found = replace(found, lens_ids=decoded[0], lens_probs=decoded[1])
            runs.append(found)
        return runs

    @torch.no_grad()
    def _decoded(self, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        hidden = hidden.to(self.vlm.device, self.vlm.dtype)
        return _top(self.vlm.unembed(self.vlm.ln_final(hidden)))

    def scene(self, vectors: Mapping[str, Writable], blocks: Sequence[int]) -> Scene:
        """The prompt as it is, and with each vector after each of some blocks."""
        plain = self.plain()
        written = {
            (name, block): run
            for name, vector in vectors.items()
            for block, run in zip(blocks, self.written(plain, vector, blocks), strict=True)
        }
        return self.of_runs(plain, written, vectors)

    def of_runs(
        self, plain: Run, written: Mapping[tuple[str, int], Run], vectors: Mapping[str, Writable]
    ) -> Scene:
        """The prompt with some of its runs."""
        return Scene(
            self.name, self.prompt.layout, plain, written,
            tuple(self.prompt.images[0]) if self.prompt.images else (),
            self.labels([plain, *written.values()]), self.expected(vectors), self.sinks,
            dict(self.missing), self.resampled(),
        )  # fmt: skip

    def resampled(self) -> tuple[Resampled, ...]:
        """What latents have read of patches, where pictures have latents in place of patches."""
        images = [i for i in self.prompt.layout.images if not i.text.grids and i.vision.grids]
        patterns = "projector.*hook_pattern"
        if not images or not any(fnmatchcase(n, patterns) for n in self.vlm.architecture.points):
            return ()
        _, cache = self.vlm.run_with_cache(
            self.prompt, names_filter=patterns, device="cpu", last_logits=1
        )
        found = []
        for image in images:
            sequences = [positions for _, positions in image.text.sequences]
            for number, grid in enumerate(image.vision.grids):
                weights = patch_weights(cache, image.index, grid=number).flatten(1).numpy()
                latents = sequences[number] if number < len(sequences) else ()
                if len(latents) == len(weights):  # tiles may stand with separators in one sequence
                    found.append(Resampled(image.index, grid, tuple(latents), weights))
        return tuple(found)

    def fits(self) -> bool:
        """Whether the runs with a vector after every block fit into one page or answer."""
        cfg, n = self.vlm.cfg, len(self.prompt.layout)
        return cfg.n_layers**2 * cfg.n_heads * n <= MOST

    def expected(self, vectors: Mapping[str, Writable]) -> dict[str, str]:
        """The right answers under the vectors' tasks, where they are known."""
        known = {name: (vector.expected or {}).get(self.name) for name, vector in vectors.items()}
        return {name: answer for name, answer in known.items() if answer is not None}

    def labels(self, runs: Iterable[Run]) -> dict[int, str]:
        """The texts of all tokens in some runs."""
        tokenizer = self.vlm.tokenizer
        held = {int(i) for run in runs for part in (run.answer_ids, run.lens_ids)
                if part is not None for i in np.unique(part)}  # fmt: skip
        return {i: string_token(tokenizer, i) if tokenizer else f"#{i}" for i in held}


def attention_blocks(vlm: HookedVLM) -> tuple[int, ...]:
    """The blocks whose attention to the text's own positions can be read."""
    try:
        return part_of(vlm, "language").layers
    except AttentionError:
        return ()


def _top(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens and their probabilities, along the last axis."""
    top = logits.detach().float().softmax(-1).topk(min(K, logits.shape[-1]))
    return top.indices.cpu().numpy(), top.values.cpu().numpy()
