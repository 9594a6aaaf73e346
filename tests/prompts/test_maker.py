"""Text and pictures as tensors: the processor's own, checked before anything runs."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers.image_utils import load_image
from typecheck import unchecked

from vlm_lens import HookedVLM, RawPrompt
from vlm_lens.errors import PromptError, VLMLensError


def same(mine: dict, theirs: dict) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_tensors_are_the_processors(vlm, picture):
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    theirs = vlm.processor(text="Q:<image>\nA:", images=[picture], return_tensors="pt")
    theirs.pop("token_type_ids", None)
    assert same(prompt.inputs, dict(theirs))
    text = vlm.prompt("Q:Greece")
    theirs = vlm.tokenizer("Q:Greece", return_tensors="pt")
    theirs.pop("token_type_ids", None)
    assert same(text.inputs, dict(theirs))
    bare = vlm.prompt("Q:Greece", add_special_tokens=False)
    assert bare.inputs["input_ids"].tolist() == text.inputs["input_ids"][:, 1:].tolist()


def test_ways_to_give_the_same(vlm, picture):
    reference = vlm.prompt("Q:<image>\nA:", [picture])
    for other in (
        vlm.prompt("Q:<image>\nA:", picture),
        vlm.prompt("Q:<image>\nA:", [[picture]]),
        vlm.prompt(RawPrompt("Q:<image>\nA:", [picture])),
        vlm.as_prompt(["Q:<image>\nA:"], [picture]),
        vlm.as_prompt([RawPrompt("Q:<image>\nA:", [picture])]),
        vlm.as_prompt(reference.inputs),
        vlm.as_prompt(reference),
    ):
        assert same(other.inputs, reference.inputs)
        assert other.layout.kinds == reference.layout.kinds
        assert other.layout.token_ids == reference.layout.token_ids


def test_batches_are_padded_on_the_left(vlm):
    pictures = [tiny.noise_picture(i) for i in range(3)]
    texts = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Greece\nA:", "Q:<image>"]
    flat = vlm.prompt(texts, pictures)
    nested = vlm.prompt(texts, [pictures[:2], [], pictures[2:]])
    assert same(flat.inputs, nested.inputs)
    mask = flat.inputs["attention_mask"]
    assert (mask[:, -1] == 1).all()
    assert [int(m.sum()) for m in mask] == [len(x) - x.start for x in flat.layouts]
    assert flat.images == (tuple(pictures[:2]), (), (pictures[2],))
    with pytest.raises(PromptError, match="batch of 3 rows"):
        _ = flat.layout
    assert len(flat) == 3


@pytest.mark.parametrize(
    ("text", "pictures", "message"),
    [
        ("Q:<image>", 0, "1 <image> placeholder and 0 pictures were given"),
        ("Q:<image><image>", 1, "2 <image> placeholders and 1 picture was given"),
        ("Q:", 1, "0 <image> placeholders and 1 picture was given"),
        (["<image>", "Q"], 2, "1 <image> placeholder and 2 pictures"),
        (["<image>", "<image>"], [1], "2 texts and 1 lists of pictures"),
        (["<image>", "<image>"], [2, 0], "Text 0 of the batch: .* 2 pictures"),
        ([], 0, "a text or a list of texts"),
    ],
)
def test_pictures_and_placeholders(vlm, no_forward, text, pictures, message):
    no_forward(vlm)
    if isinstance(pictures, list):
        images = [[tiny.noise_picture()] * n for n in pictures]
    else:
        images = [tiny.noise_picture()] * pictures
    for ask in (vlm.prompt, vlm.run, vlm.run_with_cache):
        with pytest.raises(PromptError, match=message):
            ask(text, images)


def test_what_is_no_prompt(clip, llama, picture, no_forward):
    no_forward(clip)
    with pytest.raises(PromptError, match="no such file"):
        clip.prompt("<image>", ["flag.png"])
    with pytest.raises(PromptError, match="download it"):
        clip.prompt("<image>", "https://example.org/flag.png")
    with pytest.raises(PromptError, match="a text or a list of texts"):
        unchecked(HookedVLM.prompt)(clip, [3])
    with pytest.raises(PromptError, match="holds 'input_ids'"):
        clip.run({"tokens": torch.zeros(1, 2)})
    with pytest.raises(PromptError, match=r"\[batch, pos\]"):
        clip.run({"input_ids": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(PromptError, match="processor of another model"):
        clip.run({"input_ids": torch.full((1, 2), 5000)})
    with pytest.raises(PromptError, match="leave images= out"):
        clip.run(clip.prompt("Q:"), [picture])
    with pytest.raises(PromptError, match="leave images= out"):
        clip.prompt(RawPrompt("<image>", [picture]), [picture])
    with pytest.raises(PromptError, match="leave images= out"):
        clip.prompt([RawPrompt("Q:")], [picture])
    with pytest.raises(PromptError, match="no processor"):
        HookedVLM(clip.hf_model).prompt("Q:")
    with pytest.raises(PromptError, match="made for"):
        clip.run(llama.prompt("Q:Greece"))


def test_pictures_that_cannot_be_read(clip, picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    whole = Image.open(io.BytesIO(file.getvalue()))
    closed = Image.open(file)
    closed.close()
    for given, message in (
        (cut, "Picture 1 cannot be read .*pass the path of a whole file"),
        (closed, "Picture 1 cannot be read .*that is still open"),
        (Image.new("RGB", (0, 5)), "Picture 1 has no pixels: it is 0 x 5"),
    ):
        with pytest.raises(PromptError, match=message):
            clip.prompt("<image><image>", [whole, given])


def test_half_of_a_character(clip, llama):
    for vlm in (clip, llama):
        with pytest.raises(PromptError, match="half of a character at index 2"):
            vlm.prompt(["Q", "Q:\ud800"])
    assert clip.prompt("Q:\U0001f600").texts == ("Q:\U0001f600",)


def test_what_users_type_on_a_prompt(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    assert prompt["pixel_values"] is prompt.inputs["pixel_values"]
    for ask, message in (
        (lambda: prompt["labels"], "none named 'labels': it has input_ids"),
        (lambda: prompt[0], "Of a row there is prompt.layouts"),
        (lambda: list(prompt), "gives its tensors by name"),
        (lambda: prompt.input_ids, "it is prompt.inputs.'input_ids'."),
        (lambda: prompt.tokens, "prompt.layout.strings"),
        (lambda: prompt.layuot, "Did you mean 'layout'"),
    ):
        with pytest.raises(VLMLensError, match=message):
            ask()
    assert not hasattr(prompt, "keys")
    for copied in (copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert same(copied.inputs, prompt.inputs) and copied.layouts == prompt.layouts


def test_a_tokenizer_without_padding(no_forward):
    vlm = HookedVLM(tiny.build("llama"), tiny.tokenizer("pieces", pad=False))
    assert vlm.prompt("Q:Greece").layout.last == 1
    no_forward(vlm)
    with pytest.raises(PromptError, match="pad_token = vlm.tokenizer.eos_token"):
        vlm.run(["Q:Greece", "Q:"])


def test_chat(load, picture):
    reader = tiny.reader("clip-qwen2")
    vlm = HookedVLM(load("clip-qwen2").hf_model, reader)
    messages = [{"role": "user", "content": [
        {"type": "image", "image": picture}, {"type": "text", "text": "the colour?"}]}]  # fmt: skip
    with pytest.raises(PromptError, match="no chat template"):
        vlm.chat(messages)
    reader.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}:{% for c in m.content %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{{ '\n' }}{% endfor %}"
        "{{ 'A:' if add_generation_prompt }}"
    )
    prompt = vlm.chat(messages)
    expected = vlm.prompt("user:<image>the colour?\nA:", [picture])
    assert same(prompt.inputs, expected.inputs)
    assert vlm.chat(messages, add_generation_prompt=False).layout.last < prompt.layout.last
    assert messages[0]["content"][0]["image"] is picture  # what was given is left as it is


def test_prints_itself(vlm, picture):
    shown = repr(vlm.prompt("Q:<image>\nA:", [picture]))
    assert "4 x 4 patches" in shown
    assert "input_ids [1," in shown


def test_a_transparent_colour_in_a_palette_reaches_the_processor(clip):
    picture = tiny.noise_picture(2).quantize(4)
    picture.info["transparency"] = 1
    theirs = clip.processor(text="<image>", images=picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(clip.prompt("<image>", picture).inputs["pixel_values"], theirs)


def test_orientation_is_said_for_a_picture_and_right_for_a_file(clip, tmp_path):
    """Processors do not look at EXIF orientation; transformers' load_image does."""
    plain = tiny.noise_picture(3, (40, 20))
    exif = plain.getexif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    plain.save(path, exif=exif)
    stored = Image.open(path)
    with pytest.warns(UserWarning, match="exif_transpose"):
        lying = clip.prompt("<image>A:", stored)
    theirs = clip.processor(text="<image>", images=stored, return_tensors="pt")["pixel_values"]
    assert torch.equal(lying.inputs["pixel_values"], theirs)
    assert lying.layout.image[0].grid.pixels_of.picture == (40, 20)
    upright = load_image(str(path))
    for given in (path, str(path)):
        prompt = clip.prompt("<image>A:", given)
        theirs = clip.processor(text="<image>", images=upright, return_tensors="pt")
        assert torch.equal(prompt.inputs["pixel_values"], theirs["pixel_values"])
        assert prompt.layout.image[0].grid.pixels_of.picture == (20, 40)


def test_values_beyond_eight_bits_are_said(clip):
    deep = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
    for array in (deep.astype("uint16"), deep.astype("float32"), (deep / 65535).astype("float32")):
        with pytest.warns(UserWarning, match="clip the rest"):
            clip.prompt("<image>", Image.fromarray(array))
