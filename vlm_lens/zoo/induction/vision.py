"""The eyes of toy-induction: a CLIP tower that sees channels, a projector that names colors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_lens.tasks.palette import COLORS
from vlm_lens.zoo.induction.codes import CELLS, code_book
from vlm_lens.zoo.induction.plan import CONST, GAIN, IMAGE, SLOTS

__all__ = ["D_VISION", "NEURONS", "PATCH", "SIDE", "fill_projector", "fill_tower"]

PATCH = 8
SIDE = 4 * PATCH  # in pixels: one patch a cell

# The first half of the tower's stream; the second half is its negative, so that the mean is zero
# and layer norm subtracts nothing.
_RGB = 0
_BITS = _RGB + 3
_CELL = _BITS + 6
_HALF = _CELL + len(CELLS)
D_VISION = 2 * _HALF
NEURONS = 12

_THRESHOLD = 0.2  # of a channel's mean over the patch, -1 to 1
_STEEP = 400.0
_STEP = 20.0  # beyond this, both gelus are 0 or the identity in float32


@torch.no_grad()
def fill_tower(tower: nn.Module) -> None:
    """Write the weights of a CLIP tower that was zero.

    Args:
        tower: A CLIPVisionModel with one block, of this file's sizes.
    """
    embeddings, block = tower.embeddings, tower.encoder.layers[0]
    for channel in range(3):
        _mirrored(embeddings.patch_embedding.weight, _RGB + channel, channel, 1 / PATCH**2)
    positions = embeddings.position_embedding.weight.T
    for cell in range(len(CELLS)):
        _mirrored(positions, _CELL + cell, cell + 1, 1.0)
    for norm in (tower.pre_layrnorm, block.layer_norm1, block.layer_norm2):
        norm.weight.fill_(GAIN)
    for channel in range(3):
        for number, sign in enumerate((1, -1)):
            bit = 2 * channel + number
            for part, shift in enumerate((0.0, _STEP)):  # one gelu less another: a step
                neuron = 2 * bit + part
                block.mlp.fc1.weight[neuron, _RGB + channel] = sign * _STEEP
                block.mlp.fc1.bias[neuron] = -_STEEP * _THRESHOLD - shift
                _mirrored(block.mlp.fc2.weight, _BITS + bit, neuron, (1 - 2 * part) / _STEP)


@torch.no_grad()
def fill_projector(projector: nn.Module, tokens: Sequence[str]) -> None:
    """Write the weights of a projector that was zero.

    Args:
        projector: A LlavaMultiModalProjector with biases and exact gelus.
        tokens: All tokens, by id.
    """
    codes = dict(zip(tokens, code_book(tokens), strict=True))
    first, second = projector.linear_1, projector.linear_2
    for number, rgb in enumerate(COLORS.values()):  # on where all three channels are as they should
        bits = [_BITS + 2 * channel + (value == 0) for channel, value in enumerate(rgb)]
        _step(first, number, bits, above=2.5)
    for number in range(len(CELLS)):
        _step(first, len(COLORS) + number, [_CELL + number], above=0.5)

    def write(number: int, slot: str, vector: Tensor) -> None:
        second.weight[SLOTS[slot], 2 * number] += vector / _STEP
        second.weight[SLOTS[slot], 2 * number + 1] -= vector / _STEP

    for slot in ("TOKEN", "OUT"):
        second.bias[SLOTS[slot]] = codes["gray"]
        for number, color in enumerate(COLORS):
            write(number, slot, codes[color] - codes["gray"])
    for number in range(len(COLORS)):
        write(number, "KEY", codes["<image>"])
    for number, name in enumerate(CELLS):
        write(len(COLORS) + number, "KEY", codes[name])
    second.bias[SLOTS["SELF"]] = codes["<image>"]
    second.bias[CONST] = 1.0
    second.bias[IMAGE] = 1.0


def _step(layer: nn.Linear, number: int, inputs: Sequence[int], *, above: float) -> None:
    """Two units whose gelus differ by _STEP where the inputs' sum is above a value, else by 0."""
    for part, shift in enumerate((0.0, _STEP)):
        layer.weight[2 * number + part, list(inputs)] = 4 * _STEP
        layer.bias[2 * number + part] = -4 * _STEP * above - shift


def _mirrored(weight: Tensor, row: int, column: int, value: float) -> None:
    """A weight that writes to a coordinate, and its negative to the mirrored one."""
    weight[row, column] = value
    weight[row + _HALF, column] = -value
