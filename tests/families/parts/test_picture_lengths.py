"""Pictures that follow each other without a mark are told apart, in models of no family."""

from __future__ import annotations

import pytest
import tiny
import torch
from PIL import Image
from reach.builder import build
from reach.inputs import image_token
from torch import Tensor

from families.test_by_structure import new_vlm
from vlm_lens import HookedVLM
from vlm_lens.families.parts.picture_lengths import rows_are_pictures


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


_CELLS = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)

# type -> tensors of two pictures, and how many positions each takes
TWO = {
    "lighton_ocr": ({"pixel_values": noise(2, 3, 64, 32),
                     "image_sizes": torch.tensor([[32, 32], [64, 32]])}, [4, 8]),
    "mistral_large4": ({"pixel_values": noise(2, 3, 64, 64),
                        "image_sizes": torch.tensor([[64, 32], [32, 32]])}, [8, 4]),
    "gemma4": ({"pixel_values": noise(2, 16, 192).sigmoid(),
                "image_position_ids": _CELLS.expand(2, -1, -1)}, [4, 4]),
    "llava_next_video": ({"pixel_values": noise(2, 3, 3, 32, 32),
                          "image_sizes": torch.tensor([[32, 32], [32, 32]])}, [36, 36]),
    "unlimited_ocr": ({"pixel_values": noise(2, 3, 32, 32)}, [3, 3]),
}  # fmt: skip


@pytest.mark.parametrize("model_type", TWO)
def test_the_models_own_features_tell_how_long_each_is(model_type):
    pixels, lengths = TWO[model_type]
    vlm = HookedVLM(build(model_type))
    token = image_token(vlm.hf_model.config)
    ids = torch.tensor([[1, 5, *[token] * sum(lengths), 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if model_type == "gemma4":
        inputs["mm_token_type_ids"] = (ids == token).long()
    prompt = vlm.as_prompt(inputs)
    assert [len(image.positions) for image in prompt.layout.image] == lengths
    _check_each_is_at_its_positions(vlm, prompt.inputs, prompt)


def test_rows_that_a_processor_never_cuts_are_pictures():
    vlm = new_vlm()
    pictures = [tiny.noise_picture(seed) for seed in (1, 2)]
    made = vlm.processor(text="<image><image>A:", images=pictures, return_tensors="pt")
    prompt = vlm.as_prompt(dict(made))
    given = vlm.prompt("<image><image>A:", pictures)
    assert len(prompt.layout.image) == 2
    for mine, theirs in zip(prompt.layout.image, given.layout.image, strict=True):
        assert mine.positions == theirs.positions
    _check_each_is_at_its_positions(vlm, prompt.inputs, prompt)


def test_what_a_processor_cuts_is_not_told_by_rows():
    class Tiles:
        def __call__(self, picture: Image.Image, **options) -> dict[str, Tensor]:
            return {"pixel_values": torch.zeros(max(1, picture.width // 1400), 3, 8, 8)}

    class Whole:
        def __call__(self, picture: Image.Image, **options) -> dict[str, Tensor]:
            return {"pixel_values": torch.zeros(1, 3, 8, 8)}

    long = Image.new("RGB", (3000, 400))
    assert rows_are_pictures(Whole()) and len(Tiles()(long)["pixel_values"]) == 2
    assert rows_are_pictures(None) is False
    assert rows_are_pictures(object()) is False


def _check_each_is_at_its_positions(vlm: HookedVLM, inputs: dict, prompt) -> None:
    """Another picture changes what the first block reads at its own positions, and there alone."""
    seen: list[Tensor] = []
    block = vlm.hf_model.get_submodule(f"{vlm.architecture.decoder.stack.path}.0")
    handle = block.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        vlm.hf_model(**inputs, use_cache=False)
        for number in range(2):
            changed = inputs["pixel_values"].clone()
            changed[number] = changed[number].flip(0)
            vlm.hf_model(**inputs | {"pixel_values": changed}, use_cache=False)
    handle.remove()
    for number, other in enumerate(seen[1:]):
        moved = (other[0] != seen[0][0]).any(-1).nonzero().flatten().tolist()
        positions = prompt.layout.image[number].positions
        assert moved and set(moved) <= set(positions)
