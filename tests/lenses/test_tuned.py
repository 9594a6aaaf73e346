"""The tuned lens against maps applied by hand, a killed fit, and the layout of `tuned-lens`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from vlm_lens import HookedVLM, LogitLens
from vlm_lens.errors import VLMLensError
from vlm_lens.lenses import LensError, TunedLens
from vlm_lens.lenses.fitted import group_of
from vlm_lens.lenses.tuned import published_hash
from vlm_lens.prompts.template import RawPrompt

WORDS = ["Greece", "Peru", "France", "Japan", "Athens", "Lima", "Paris", "Tokyo", "red", "green"]
QUICK = {"steps": 6, "batch_size": 4, "positions": 40, "progress": False, "checkpoint": 2}


@pytest.fixture(scope="module")
def prompts():
    texts = [f"Q:{a}\nA:{b}" for a, b in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)]
    pictures = [RawPrompt("Q:<image>\nA:", [tiny.noise_picture(i)]) for i in range(8)]
    return [*texts, *pictures]


@pytest.fixture(scope="module")
def fitted(load, prompts):
    return TunedLens.fit(load("clip-llama"), prompts, kinds="each", **{**QUICK, "steps": 40})


@pytest.fixture
def asked(clip, picture):
    return clip.prompt("Q:<image>\nA:", [picture])


def plain(clip, prompt, mapped):
    """Log-probabilities of block 0's output after a map, with plain HF and torch hooks."""
    point = "blocks.0.hook_resid_post"
    with torch.no_grad():
        hidden = tiny.plain_read(clip.hf_model, prompt.inputs, [point])[point][0]
        norm, _ = tiny.where(clip.hf_model, "ln_final.hook_normalized")
        return clip.hf_model.lm_head(norm(mapped(hidden))).log_softmax(-1)


def test_each_kind_of_position_goes_through_its_own_map(clip, fitted, asked):
    kinds = asked.layout.kinds
    point = "blocks.0.hook_resid_post"

    def mapped(hidden):
        rows = []
        for h, kind in zip(hidden, kinds, strict=True):
            key = f"{point}/{'image' if kind.startswith('image') else 'text'}"
            rows.append(h + fitted.weights[key].data @ h + fitted.biases[key].data)
        return torch.stack(rows)

    seen = fitted.run(clip, asked).rows[0]
    probs = plain(clip, asked, mapped).exp()
    torch.testing.assert_close(seen.top_probs[0], probs.topk(10).values, rtol=1e-4, atol=1e-6)
    other = plain(clip, asked, lambda h: h).exp().topk(10).values
    assert (other - probs.topk(10).values).abs().max() > 1e-4


def test_the_last_layer_is_left_alone(clip, fitted, asked):
    mine, logit = (lens.run(clip, asked).rows[0] for lens in (fitted, LogitLens()))
    assert torch.equal(mine.top_probs[-1], logit.top_probs[-1])
    assert not torch.equal(mine.top_probs[0], logit.top_probs[0])
    assert not any(key.startswith("blocks.1.") for key in fitted.weights)


def test_the_fit_brings_the_lens_nearer_to_the_model(fitted):
    table = fitted.report
    assert set(table["kind"]) == {"text", "image"}
    assert (table["kl"] < table["kl, logit lens"]).all()


def test_the_report_is_the_mean_over_the_held_out_prompts(clip, prompts):
    import numpy as np

    lens = TunedLens.fit(clip, prompts, seed=3, heldout=0.3, **QUICK)
    held = [prompts[i] for i in np.random.RandomState(3).permutation(len(prompts))[:5]]
    for measured, name in ((lens, "kl"), (LogitLens(), "kl, logit lens")):
        sums = {"text": [], "image": []}
        for one in held:
            row = measured.run(clip, clip.prompt(one)).rows[0]
            for kl, position in zip(row.kl[0].tolist(), row.positions, strict=True):
                image = row.layout.kinds[position].startswith("image")
                sums["image" if image else "text"].append(kl)
        for _, told in lens.report.iterrows():
            assert told[name] == pytest.approx(np.mean(sums[told["kind"]]), rel=1e-3)
            assert told["positions"] == len(sums[told["kind"]])


def test_a_killed_fit_goes_on_and_ends_the_same(clip, prompts, tmp_path, monkeypatch):
    from vlm_lens.lenses import tuned_fit

    whole = TunedLens.fit(clip, prompts, kinds="each", **QUICK)
    step = tuned_fit._Fit._step

    def dies(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(tuned_fit._Fit, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        TunedLens.fit(clip, prompts, kinds="each", save=tmp_path / "fit", **QUICK)
    taken = []
    monkeypatch.setattr(
        tuned_fit._Fit, "_step", lambda self, number: taken.append(number) or step(self, number)
    )
    again = TunedLens.fit(clip, prompts, kinds="each", save=tmp_path / "fit", **QUICK)
    assert taken == [4, 5]
    assert again == whole
    with pytest.raises(LensError, match="another settings"):
        TunedLens.fit(clip, prompts, kinds="each", save=tmp_path / "fit", **{**QUICK, "seed": 1})


def test_the_model_keeps_no_gradient(clip, fitted):
    assert all(p.grad is None for p in clip.hf_model.parameters())


def test_files_hold_the_lens(clip, fitted, asked, tmp_path):
    fitted.save(tmp_path / "lens")
    loaded = TunedLens.load(tmp_path / "lens")
    assert loaded == fitted and loaded.report.equals(fitted.report)
    assert torch.equal(
        loaded.run(clip, asked).rows[0].top_probs, fitted.run(clip, asked).rows[0].top_probs
    )


def test_another_model_is_refused(clip, fitted, prompts, load):
    with pytest.raises(LensError, match="output layer"):
        fitted.run(load("siglip-mistral"), "Q:Greece\nA:")
    other = tiny.randomize(tiny.build("clip-llama"), seed=5)
    other.lm_head.load_state_dict(clip.hf_model.lm_head.state_dict())
    twin = HookedVLM(other, clip.processor)
    with pytest.raises(LensError, match="allow_transfer"):
        fitted.run(twin, "Q:Greece\nA:")
    assert replace(fitted, allow_transfer=True).run(twin, "Q:Greece\nA:")


def test_what_cannot_be_fitted_is_refused_before_any_run(clip, prompts, no_forward):
    no_forward(clip)
    for changed, message in (
        ({"kinds": "both"}, "kinds is None"),
        ({"steps": 0}, "steps is at least 1"),
        ({"heldout": 1.0}, "share of the prompts"),
        ({"points": "blocks.1.hook_resid_post"}, "needs no map"),
    ):
        with pytest.raises(LensError, match=message):
            TunedLens.fit(clip, prompts, **{**QUICK, **changed})
    with pytest.raises(LensError, match="1 was given"):
        TunedLens.fit(clip, prompts[:1], **QUICK)


def test_a_kind_that_was_never_seen_is_refused(clip, prompts, asked):
    lens = TunedLens.fit(clip, prompts[:6], kinds="each", **QUICK)
    assert set(lens.report["kind"]) == {"text"}
    with pytest.raises(LensError, match="without positions of kind 'image'"):
        lens.run(clip, asked)


# ---------------------------------------------------------------------- as tuned-lens saves


def published(folder, vlm, **changes):
    """What TunedLens.save of the package writes: a ModuleList's state, and a config."""
    torch.manual_seed(0)
    made = nn.ModuleList([nn.Linear(vlm.cfg.d_model, vlm.cfg.d_model) for _ in range(2)])
    torch.save(made.state_dict(), folder / "params.pt")
    config = {
        "base_model_name_or_path": "some/model", "d_model": vlm.cfg.d_model, "bias": True,
        "num_hidden_layers": vlm.cfg.n_layers, "base_model_revision": None,
        "unembed_hash": published_hash(vlm), "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    return made


def test_a_published_lens_is_read(clip, asked, tmp_path):
    made = published(tmp_path, clip)
    lens = TunedLens.from_published(tmp_path, clip)
    seen = lens.run(clip, asked).rows[0]
    with torch.no_grad():  # translator i reads the input of block i
        probs = plain(clip, asked, lambda h: h + made[1](h)).exp()
    torch.testing.assert_close(seen.top_probs[0], probs.topk(10).values, rtol=1e-4, atol=1e-6)
    assert replace(lens, points=("hook_merged",)).run(clip, asked)


def test_a_published_lens_of_another_model_is_refused(clip, tmp_path):
    for changes, message in (
        ({"unembed_hash": "0" * 64}, "allow_transfer"),
        ({"d_model": 7}, "of width 7"),
        ({"lens_type": "other"}, "'other'"),
    ):
        published(tmp_path, clip, **changes)
        with pytest.raises(LensError, match=message):
            TunedLens.from_published(tmp_path, clip)
    published(tmp_path, clip, unembed_hash="0" * 64)
    assert TunedLens.from_published(tmp_path, clip, allow_transfer=True)


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_never_executed(clip, tmp_path):
    published(tmp_path, clip)
    torch.save({"0.weight": Harmful(tmp_path / "harm")}, tmp_path / "params.pt")
    with pytest.raises(LensError, match="cannot be read"):
        TunedLens.from_published(tmp_path, clip)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(VLMLensError):
        TunedLens.from_published(tmp_path / "nowhere", clip)


def test_frames_of_a_video_go_through_the_map_of_pictures():
    kinds = ("text", "special", "image 0", "video 1")
    assert [group_of(kind, "each") for kind in kinds] == ["text", "text", "image", "image"]
    assert {group_of(kind, None) for kind in kinds} == {"all"}
