"""What the explorer shows, as arrays: a model, its prompts, and one run of a prompt each.

```
ModelView
  vectors   what can be written: a name and a sentence each
  scenes    one prompt each
    plain     Run                     every position
    written   (vector, block) -> Run  the positions that the writing changed
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.layout import Layout

UNNAMED = "prompt"  # a scene to which nobody gave a name


@dataclass(frozen=True, eq=False)
class Run:
    """What a model did with one prompt; `k` tokens are kept of each distribution.

    Attributes:
        answer_ids: The most likely next tokens, `[k]`.
        answer_probs: Their probabilities, `[k]`.
        positions: The positions that the arrays below hold, in order.
        attention: Shares, `[layer, head, position, key]`; `None` where it could not be read.
        lens_ids: What each block reads, `[block, position, k]`; `None` where there is no lens.
        lens_probs: Their probabilities, likewise.
        right: Which answers are right for the task whose vector is written, `[k]`.
    """

    answer_ids: np.ndarray
    answer_probs: np.ndarray
    positions: tuple[int, ...] = ()
    attention: np.ndarray | None = None
    lens_ids: np.ndarray | None = None
    lens_probs: np.ndarray | None = None
    right: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Resampled:
    """What the latents of a resampler have read of the patches of one view of a picture.

    Attributes:
        image: Which picture of the prompt.
        grid: The view's patches, as the tower reads them.
        positions: The latents' positions in the text.
        weights: Shares, `[latent, patch]`, patches row by row.
    """

    image: int
    grid: PatchGrid
    positions: tuple[int, ...]
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """One prompt, run as it is and with each vector after each block.

    Attributes:
        name: What it is called, `"Albania"`; a link names it.
        layout: The prompt's coordinates.
        plain: The run as it is.
        written: (vector, block) -> the run with that vector at the last position after that block.
        pictures: The prompt's pictures.
        labels: Token id -> its text, for every id in the runs.
        expected: Vector -> the right answer under its task, where one is known.
        sinks: The positions that are attention sinks.
        resampled: What latents have read, where no position has a patch of its own.
        missing: `"attention"` or `"lens"` -> why it could not be read.
    """

    name: str
    layout: Layout
    plain: Run
    written: Mapping[tuple[str, int], Run] = field(default_factory=dict)
    pictures: tuple[Image.Image, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)
    sinks: tuple[int, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    resampled: tuple[Resampled, ...] = ()


@dataclass(frozen=True, eq=False)
class ModelView:
    """A model and what it did with some prompts.

    Attributes:
        name: The model's name.
        n_blocks: How many blocks its language model has.
        scenes: The prompts.
        vectors: Vector -> what it was read from, one sentence.
        attention_blocks: The blocks along the first axis of attention.
        about: A sentence about the model.
    """

    name: str
    n_blocks: int
    scenes: tuple[Scene, ...]
    vectors: Mapping[str, str] = field(default_factory=dict)
    attention_blocks: tuple[int, ...] = ()
    about: str = ""
