"""Edges of attention by plain transformers: masks added by plain hooks to an eager copy."""

from __future__ import annotations

from contextlib import ExitStack

import tiny
import torch

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:<image>b\nA:"]


def prompts(vlm):
    """A prompt of one row and a padded batch, where the family allows both."""
    pictures = [tiny.noise_picture(i, (24, 16)) for i in range(3)]
    if vlm.family.name == "mllama":
        yield vlm.prompt(TEXTS[1], pictures[:1])
        return
    yield vlm.prompt(TEXTS[0], pictures[:2])
    yield vlm.prompt(TEXTS, [pictures[:2], pictures[2:]])


@torch.no_grad()
def by_mask(vlm, eager, inputs, cuts, layers, heads=None, added=-torch.inf):
    """Logits of plain transformers with a number added to the mask of some blocks.

    Args:
        vlm: The model, for where its attention is.
        eager: Its copy.
        inputs: The prompt's.
        cuts: (row, query, key), counted in the whole sequence.
        layers: The blocks, all of one kind of attention.
        heads: The heads; all by default.
        added: What is added to the scores there.
    """
    n_heads = vlm.cfg.n_heads
    chosen = range(n_heads) if heads is None else heads

    def add(module, args, kwargs):
        mask = kwargs["attention_mask"]
        more = torch.zeros(len(inputs["input_ids"]), n_heads, *mask.shape[-2:])
        for row, query, key in cuts:
            more[row, list(chosen), query, key] = added
        return args, kwargs | {"attention_mask": mask + more}

    points = vlm.architecture.points
    with ExitStack() as stack:
        for layer in layers:
            path = points[f"blocks.{layer}.attn.hook_attn_scores"].site.module
            module = eager.get_submodule(path)
            handle = module.register_forward_pre_hook(add, with_kwargs=True)
            stack.callback(handle.remove)
        return eager(**inputs, use_cache=False).logits


def own_layers(vlm):
    """Blocks that attend to the prompt, not to the features of pictures."""
    table = vlm.points("blocks.*.attn.hook_attn_scores").values()
    return [point.layer for point in table if not point.pictures_only]


def edges(prompt, queries, keys):
    """(row, query, key) of every pair of two positions."""
    return [
        (layout.row, q, k)
        for layout in prompt.layouts
        for _, q in queries.resolve(layout)
        for _, k in keys.resolve(layout)
    ]
