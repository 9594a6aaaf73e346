"""Views as JSON: shares and probabilities as 16-bit fixed point, tokens by index, in base64.

A number x from 0 to 1 is kept as round(65535 x): off by 8e-6 at the most, two bytes each.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_lens.explorer.view import UNNAMED, ModelView, Run, Scene
from vlm_lens.figures.prompt_view import canvas, cell_edges, picture_uri, visible
from vlm_lens.figures.view_parts import drawings
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.kinds import TEXT, runs
from vlm_lens.layout.layout import Layout

UNIT = 65535


def encode_model(view: ModelView) -> dict[str, Any]:
    """A model and its scenes."""
    return {
        "name": view.name,
        "about": view.about,
        "blocks": view.n_blocks,
        "attentionBlocks": list(view.attention_blocks),
        "vectors": [{"name": name, "about": about} for name, about in view.vectors.items()],
        "scenes": [encode_scene(scene) for scene in view.scenes],
    }


def encode_scene(scene: Scene) -> dict[str, Any]:
    """A prompt, its drawing and its runs."""
    layout = scene.layout
    strings = layout.strings or tuple(f"#{token}" for token in layout.token_ids)
    tokens = [[visible(s, 40), k] for s, k in zip(strings, layout.kinds, strict=True)]
    written: dict[str, dict[int, Any]] = {}
    for (vector, block), run in scene.written.items():
        written.setdefault(vector, {})[block] = encode_run(run, scene.labels)
    return {
        **encode_pending(scene.name, scene.pictures),
        "prompt": prompt_text(scene),
        "drawings": list(_drawings(scene)),
        "why": [image.text.why_no_grid for image in layout.images],
        "tokens": tokens,
        "last": layout.last,
        "sinks": list(scene.sinks),
        "missing": dict(scene.missing),
        "expected": dict(scene.expected),
        "plain": encode_run(scene.plain, scene.labels),
        "written": written,
    }


def encode_pending(name: str, pictures: Iterable[Image.Image]) -> dict[str, Any]:
    """A prompt of which no run is known: its name and its pictures."""
    return {
        "name": name,
        "pictures": [{"uri": picture_uri(p), "width": p.width, "height": p.height}
                     for p in pictures],
    }  # fmt: skip


def prompt_text(scene: Scene) -> str:
    """The prompt in one line, each picture as a word in brackets, without `<markers>`."""
    layout = scene.layout
    pieces = layout.pieces or layout.strings
    parts = []
    for kind, start, stop in runs(layout.kinds):
        if kind == TEXT:
            shown = (p for p in pieces[start:stop] if not (p.startswith("<") and p.endswith(">")))
            parts.append("".join(shown) if pieces else f"[{stop - start} tokens]")
        elif kind.medium:
            many = len(layout.images) > 1
            told = "picture" if scene.name == UNNAMED else f"picture of {scene.name}"
            parts.append(f" [{kind}] " if many else f" [{told}] ")
    return " ".join("".join(parts).split())


def encode_run(run: Run, labels: Mapping[int, str]) -> dict[str, Any]:
    """A run; its tokens are indices into a list of words of its own."""
    ids = [run.answer_ids, *(() if run.lens_ids is None else (run.lens_ids,))]
    held, index = np.unique(np.concatenate([part.reshape(-1) for part in ids]), return_inverse=True)
    k = len(run.answer_ids)
    encoded: dict[str, Any] = {
        "words": [visible(labels[int(i)], 40) for i in held],
        "answers": index[:k].tolist(),
        "probs": [round(float(p), 5) for p in run.answer_probs],
        "positions": list(run.positions),
        "k": k,
    }
    if run.right is not None:
        encoded["right"] = [bool(r) for r in run.right]
    if run.attention is not None:
        encoded |= {"attention": fixed(run.attention), "heads": run.attention.shape[1]}
    if run.lens_ids is not None and run.lens_probs is not None:
        encoded |= {"lensWords": _base64(index[k:], "<u2"), "lensProbs": fixed(run.lens_probs)}
        encoded["lensK"] = run.lens_ids.shape[-1]
    return encoded


def fixed(values: np.ndarray) -> str:
    """Numbers from 0 to 1 as 16-bit fixed point, in base64."""
    return _base64(np.rint(np.clip(np.nan_to_num(values), 0, 1) * UNIT), "<u2")


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode()


def _drawings(scene: Scene) -> Iterable[dict[str, Any]]:
    """What is drawn: each picture with the patches that stand in the sequence."""
    layout: Layout = scene.layout
    grids = {(im.index, n): g for im in layout.images for n, g in enumerate(im.text.grids)}
    drawn = set()
    for image, numbers in drawings(grids):
        drawn.add(image)
        shown = [grids[image, n] for n in numbers]
        tiles = len(numbers) > 1 or numbers[0] > 0
        yield {**_drawing(scene, image, shown), "tiles": tiles}
    for one in scene.resampled:
        drawn.add(one.image)
        latents = {"latents": list(one.positions), "weights": fixed(one.weights)}
        yield {**_drawing(scene, one.image, [one.grid]), **latents}
    for image in range(len(scene.pictures)):
        if image not in drawn:
            yield _drawing(scene, image, [])


def _drawing(scene: Scene, image: int, grids: Sequence[PatchGrid]) -> dict[str, Any]:
    """A picture and its patches: x, y, width, height, position, row and column of each."""
    size = (224, 224)
    if image < len(scene.pictures):
        size = scene.pictures[image].size
    elif grids:
        size = grids[0].pixels_of.picture
    cells = []
    for grid in grids:
        xs, ys = cell_edges(grid)
        for i, position in enumerate(grid.positions):
            r, c = divmod(i, grid.cols)
            box = (xs[c], ys[r], xs[c + 1] - xs[c], ys[r + 1] - ys[r])
            cells.append([*(round(v, 2) for v in box), position, r, c])
    x0, y0, x1, y1 = canvas(grids, size)
    return {
        "image": image,
        "box": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        "size": list(size),
        "cells": cells,
    }
