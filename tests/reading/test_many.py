from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import ActivationPatch, At, Find, Last, TaskVector, VLMLensError
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.vectors import read_each

TEXTS = ["Q:Greece\nA:", "A:", "What is the capital of the country? " * 4 + "A:", "Q:Peru\nA:Lima:"]


def prompts(vlm) -> list:
    """Texts of unlike length, out of order, and prompts with no, one and two pictures."""
    listed: list = [RawPrompt(t) for t in TEXTS]
    if vlm.cfg.vision is not None:
        pictures = [tiny.noise_picture(i) for i in range(2)]
        listed.insert(1, RawPrompt("<image>" + TEXTS[2], pictures[:1]))
        listed.insert(3, RawPrompt("<image>Q:<image>\nA:", pictures))
        listed.append(RawPrompt("<image>A:", pictures[1:]))
    return listed


@pytest.mark.parametrize("at", [0, 1, At(-2)])
def test_numbers_count_from_each_prompts_own_first_token(model, at):
    listed = prompts(model)
    alone = torch.cat([model.run_with_cache(p, positions=at)[1]["resid_post", 1] for p in listed])
    for size in (1, 3, 16):
        together = read_each(model, listed, at=at, batch_size=size)
        torch.testing.assert_close(together[:, 1], alone[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", (1, 2, 16))
def test_batches_read_what_single_prompts_read_in_the_order_given(model, size):
    listed = prompts(model)
    alone = torch.cat([read_each(model, [p], at=Find(":", -1)) for p in listed])
    together = read_each(model, listed, at=Find(":", -1), batch_size=size)
    assert together.shape == (len(listed), model.cfg.n_layers, model.cfg.d_model)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    vector = TaskVector.read(model, listed, at=Find(":", -1), batch_size=size)
    torch.testing.assert_close(vector.values, alone.mean(0), rtol=1e-5, atol=1e-5)
    assert list(vector.prompts) == [p.text for p in listed]


def test_batches_are_of_like_length_and_pictures_are_processed_once(clip, monkeypatch):
    listed = prompts(clip)
    shapes, seen = [], []
    forward, pictures = clip.hf_model.forward, clip.processor.image_processor
    monkeypatch.setattr(
        clip.hf_model, "forward",
        lambda **inputs: shapes.append(inputs["attention_mask"]) or forward(**inputs),
    )  # fmt: skip
    process = type(pictures).preprocess

    def counted(self, images, *args, **kwargs):
        seen.append(images)
        return process(self, images, *args, **kwargs)

    monkeypatch.setattr(type(pictures), "preprocess", counted)
    read_each(clip, listed, at=Last())
    assert sum(len(m) for m in shapes) == len(listed)
    assert all(m.float().mean() > 0.4 for m in shapes)
    flat = [p for images in seen for p in (images if isinstance(images, list) else [images])]
    assert len(flat) == sum(len(p.images) for p in listed)


def test_made_prompts_run_as_they_are(clip, picture):
    batch = clip.prompt(["Q:Greece\nA:", "A:"])
    alone = clip.prompt("<image>A:", [picture])
    values = read_each(clip, [batch, alone], at=Last())
    assert values.shape[0] == 3
    assert torch.equal(values[2], read_each(clip, alone, at=Last())[0])


def test_saved_readings_are_those_in_memory(clip, tmp_path):
    listed, folder = prompts(clip), tmp_path / "read"
    values = read_each(clip, listed, at=Last(), batch_size=2)
    saved = read_each(clip, listed, at=Last(), batch_size=2, save=folder)
    assert len(saved) == len(listed) and torch.equal(saved.load(), values)
    assert torch.equal(saved[-1], values[-1]) and torch.equal(saved[1:3], values[1:3])
    assert torch.equal(torch.stack(list(saved)), values)
    torch.testing.assert_close(saved.mean(), values.mean(0))
    assert not list(folder.glob("*.partial"))


def test_a_killed_reading_goes_on(clip, tmp_path, monkeypatch):
    listed, folder = prompts(clip), tmp_path / "read"
    values = read_each(clip, listed, at=Last(), batch_size=2)
    run, count = clip.run_with_cache, []

    def killed(*args, **kwargs):
        count.append(args)
        if len(count) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(clip, "run_with_cache", killed)
    with pytest.raises(KeyboardInterrupt):
        read_each(clip, listed, at=Last(), batch_size=2, save=folder)
    written = len(list(folder.glob("rows-*")))
    assert written == 2
    again = read_each(clip, listed, at=Last(), batch_size=2, save=folder)
    torch.testing.assert_close(again.load(), values, rtol=1e-5, atol=1e-5)
    before = len(count)
    read_each(clip, listed, at=Last(), save=folder)
    assert len(count) == before  # nothing was left to read


def test_another_reading_is_refused(clip, tmp_path):
    folder = tmp_path / "read"
    read_each(clip, TEXTS, at=Last(), save=folder)
    edit = ActivationPatch("blocks.0.hook_resid_post", at=Last(), value=0.0)
    for other in ({"at": -2}, {"points": "blocks.*.hook_resid_pre"}, {"interventions": edit}):
        with pytest.raises(VLMLensError, match="another"):
            read_each(clip, TEXTS, save=folder, **{"at": Last()} | other)
    with pytest.raises(VLMLensError, match="another"):
        read_each(clip, TEXTS[:2], at=Last(), save=folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(VLMLensError, match="not empty"):
        read_each(clip, TEXTS, at=Last(), save=tmp_path / "mine")


def test_logits_of_the_last_positions_only(clip, picture):
    prompt = clip.prompt("<image>Q:Greece\nA:", [picture])
    whole, cache = clip.run_with_cache(prompt)
    last, fewer = clip.run_with_cache(prompt, last_logits=2)
    assert torch.allclose(last, whole[:, -2:], atol=1e-5) and last.shape == whole[:, -2:].shape
    assert all(torch.equal(fewer[n], cache[n]) for n in cache if n != "hook_logits")
    with pytest.raises(VLMLensError, match="last_logits"):
        clip.run_with_cache(prompt, last_logits=0)
