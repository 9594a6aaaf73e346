"""A prompt with one picture for a model of any type, as tensors of its own forward's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIDE, PATCH = 32, 8
BEFORE, AFTER = [1, 5, 6], [7, 8, 9, 11]


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _cells(side: int) -> Tensor:
    """Column and row of each patch of a square, `[1, side * side, 2]`."""
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([cols, rows], -1).reshape(1, -1, 2)


_MARKED = torch.tensor([[0, 1, 1, 1, 1, 0, 0]]).bool()
_QFORMER = {"qformer_input_ids": torch.tensor([[3, 4]]),
            "qformer_attention_mask": torch.ones(1, 2).long()}  # fmt: skip

# what types read a picture from whose forward takes more than pixels and their sizes
_OWN: dict[str, Callable[[], dict[str, Tensor]]] = {
    "deepseek_vl_hybrid": lambda: {"pixel_values": _noise(1, 3, SIDE, SIDE),
                                   "high_res_pixel_values": _noise(1, 3, SIDE, SIDE)},
    "gemma4": lambda: {"pixel_values": _noise(1, 16, 192).sigmoid(),
                       "image_position_ids": _cells(4)},
    "gemma4_unified": lambda: {"pixel_values": _noise(1, 16, 192).sigmoid(),
                               "image_position_ids": _cells(4)},
    "granite_docling": lambda: {"pixel_values": _noise(1, 1, 3, SIDE, SIDE),
                                "pixel_attention_mask": torch.ones(1, 1).bool()},
    "inkling2": lambda: {"pixel_values": _noise(4, 16, 16, 3),
                         "image_grid_thw": torch.tensor([[1, 2, 2]])},
    "inkling_mm_model": lambda: {"pixel_values": _noise(4, 2, 8, 8, 3)},
    "kosmos-2": lambda: {"pixel_values": _noise(1, 3, SIDE, SIDE),
                         "image_embeds_position_mask": _MARKED},
    "kosmos-2.5": lambda: {"flattened_patches": torch.cat(
        [_cells(4).flip(-1).float() + 1, _noise(1, 16, 24)], -1),
        "image_embeds_position_mask": _MARKED},
    "nemotron_h_omni": lambda: {"pixel_values": _noise(16, 192),
                                "image_grid_hw": torch.tensor([[4, 4]])},
    "video_llama_3": lambda: {"pixel_values": _noise(16, 192),
                              "image_grid_thw": torch.tensor([[1, 4, 4]]),
                              "image_merge_sizes": torch.tensor([2])},
    "pix2struct": lambda: {"flattened_patches": torch.cat(
        [_cells(4).flip(-1).float() + 1, _noise(1, 16, 24)], -1)},
    "idefics": lambda: {"pixel_values": _noise(1, 1, 3, SIDE, SIDE),
                        "image_attention_mask": torch.ones(1, 7, 1).long()},
    "instructblip": lambda: {"pixel_values": _noise(1, 3, SIDE, SIDE), **_QFORMER},
    "instructblipvideo": lambda: {"pixel_values": _noise(1, 4, 3, SIDE, SIDE), **{
        k: v for k, v in _QFORMER.items()}},
    "lfm2_vl": lambda: {"pixel_values": _noise(1, 16, 192),
                        "spatial_shapes": torch.tensor([[4, 4]]),
                        "pixel_attention_mask": torch.ones(1, 16).long()},
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), lambda: {
        "pixel_values": _noise(1, 3, PATCH, 16 * PATCH), "target_sizes": torch.tensor([[4, 4]])}),
    "molmo2": lambda: {"pixel_values": _noise(1, 16, 192),
                       "image_token_pooling": torch.arange(16).view(4, 4),
                       "image_grids": torch.tensor([[2, 2, 0, 0]]),
                       "image_num_crops": torch.tensor([1])},
}  # fmt: skip


class NoExample(Exception):
    """No tensors were found on which the model runs with a picture; the message says why."""


def example(model: nn.Module) -> dict[str, Tensor]:
    """Ids with the image tokens of one picture, and what its forward reads the picture from.

    Raises:
        NoExample: With the last error of the model's own forward.
    """
    told: list[str] = []
    for pixels in _pixels(model):
        try:
            n_tokens = _n_tokens(model, pixels)
            inputs = _with_ids(model, pixels, n_tokens)
            with torch.no_grad():
                one = model(**inputs, use_cache=False).logits
                other = {k: v + 0.5 if v.is_floating_point() else v for k, v in inputs.items()}
                two = model(**other, use_cache=False).logits
        except Exception as error:  # whatever a model may raise on tensors of another form
            told.append(f"{type(error).__name__}: {str(error)[:110]}")
            continue
        if torch.isfinite(one).all() and not torch.equal(one, two):
            return inputs
        told.append("the picture does not change the logits, or they are not finite")
    raise NoExample("; ".join(dict.fromkeys(told)) or "it takes no pixel_values")


def image_token(config: Any) -> int | None:
    """The token that stands for a patch of a picture."""
    for name in ("image_token_id", "image_token_index", "image_patch_id", "video_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def _pixels(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    takes = inspect.signature(model.forward).parameters
    noise = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    grid = torch.tensor([[1, 4, 4]])
    grids = {"image_grid_thw": grid, "image_grid_hw": grid[:, 1:]}
    named = {k: v for k, v in grids.items() if k in takes}
    if "image_merge_sizes" in takes:
        named["image_merge_sizes"] = torch.tensor([2])
    if named:
        patch = PATCH
        for times in (1, 2):
            yield {"pixel_values": random(16, 3 * times * patch * patch), **named}
        yield {"pixel_values": random(16, 3, patch, patch), **named}
        yield {"pixel_values": random(1, 16, 3, patch, patch), **named}
        yield {"pixel_values": random(1, 3, SIDE, SIDE), **named}
    if own := _OWN.get(model.config.model_type):
        yield own()
    if "pixel_values" not in takes:
        return
    sizes = {"image_sizes": torch.tensor([[SIDE, SIDE]])} if "image_sizes" in takes else {}
    for side in (SIDE, 2 * SIDE):
        yield {"pixel_values": random(1, 3, side, side), **sizes}
        yield {"pixel_values": random(1, 1, 3, side, side), **sizes}
        yield {"pixel_values": random(1, 3, 3, side, side), **sizes}


def _features_of(model: nn.Module) -> Any:
    for holder in (model, getattr(model, "model", None)):
        if callable(getattr(holder, "get_image_features", None)):
            return holder.get_image_features
    return None


@torch.no_grad()
def _n_tokens(model: nn.Module, pixels: dict[str, Tensor]) -> int:
    if (
        "pixel_values" in pixels
        and pixels["pixel_values"].dim() == 5
        and "qformer_input_ids" in pixels
    ):
        return pixels["pixel_values"].shape[1] * model.config.num_query_tokens
    features = _features_of(model)
    if features is None:
        return 0
    takes = inspect.signature(features).parameters
    given = {k: v for k, v in pixels.items() if k in takes or "args" in takes}
    try:
        found = features(**given)
    except TypeError:
        found = features(**pixels)
    pooled, deep = (getattr(found, n, None) for n in ("pooler_output", "deepstack_features"))
    if pooled is None and deep is not None:
        pooled = deep[0][1]
    found = getattr(found, "last_hidden_state", found) if pooled is None else pooled
    if isinstance(found, list | tuple):
        return sum(x.shape[:-1].numel() for x in found)
    return found.shape[:-1].numel()


def _with_ids(model: nn.Module, pixels: dict[str, Tensor], n_tokens: int) -> dict[str, Tensor]:
    takes = inspect.signature(model.forward).parameters
    token = image_token(model.config)
    ids = [*BEFORE, *([token] * n_tokens if token is not None else []), *AFTER]
    inputs = {
        "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), **pixels
    }  # fmt: skip
    if "mm_token_type_ids" in takes or "token_type_ids" in takes:
        name = "mm_token_type_ids" if "mm_token_type_ids" in takes else "token_type_ids"
        inputs[name] = (inputs["input_ids"] == token).long()
    if "moe_mm_token_type_ids" in takes:
        inputs["moe_mm_token_type_ids"] = (inputs["input_ids"] == token).long()
    if model.config.is_encoder_decoder and "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = torch.tensor([BEFORE])
    if "bbox" in takes:
        inputs["bbox"] = torch.zeros(1, len(ids), 4)
    return {k: v for k, v in inputs.items() if k in takes or k.startswith("pixel")}
