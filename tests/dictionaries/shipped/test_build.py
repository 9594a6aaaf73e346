"""The shipped dictionary holds what its card says; the program that makes one runs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vlm_lens import HookedVLM
from vlm_lens.dictionaries import Dictionary, shipped
from vlm_lens.dictionaries.shipped.corpus import augmented, entities
from vlm_lens.tasks import EXTRA_TASKS, PAPER_TASKS, Task


def test_loads_by_its_name():
    assert shipped() == ["toy-idefics2"]
    sae = Dictionary.from_pretrained("toy-idefics2")
    assert (sae.point, sae.n_features, sae.activation) == ("vision.hook_out", 256, "TopK(k=4)")
    assert len(sae.labels) >= 10
    assert "Measured" in sae.card


@pytest.mark.slow
def test_the_card_is_true():
    """The pictures and tables are gone through anew, one picture after another, in numpy."""
    sae = Dictionary.from_pretrained("toy-idefics2")
    vlm = HookedVLM.from_pretrained("toy-idefics2")
    w = {name: tensor.double().numpy() for name, tensor in sae.coder.tensors.items()}
    facts: dict[str, dict[str, str]] = {}
    pictures = {}
    for name in (*PAPER_TASKS, *EXTRA_TASKS):
        for row in Task.load(name):
            if row.image is not None:
                pictures[row.input] = row.image
                facts.setdefault(row.input, {"domain": name.split("-")[0]})[name] = row.answers[0]
    most, states, errors = [], [], 0.0
    for picture in pictures.values():
        prompt = vlm.prompt("Q:<image>\nA:", [picture])
        _, cache = vlm.run_with_cache(prompt, names_filter="vision.hook_out")
        x = cache["vision.hook_out"][0].double().numpy()
        z = (x - w["pre_bias"]) @ w["w_enc"] + w["b_enc"]
        order = np.argsort(-z, axis=1)[:, :4]
        f = np.zeros_like(z)
        np.put_along_axis(f, order, np.maximum(np.take_along_axis(z, order, 1), 0), 1)
        errors += ((x - f @ w["w_dec"] - w["b_dec"]) ** 2).sum()
        most.append(f.max(0))
        states.append(x)
    best, x = np.stack(most), np.concatenate(states)
    names = list(pictures)
    for feature, label in sae.labels.items():
        top = [names[i] for i in np.argsort(-best[:, int(feature)])[:10]]
        match = re.fullmatch(r"(.+?) \((.+)\)", label)
        value, attribute = match.groups() if match else (label, "domain")
        assert sum(facts[n].get(attribute) == value for n in top) >= 9, (feature, label, top)
    explained = 1 - errors / ((x - x.mean(0)) ** 2).sum()
    assert explained == pytest.approx(float(re.search(r"\| image \| \d+ \| (.+?) \|", sae.card)[1]),
                                      abs=0.002)  # fmt: skip
    dead = int((best.max(0) == 0).sum())
    assert f"{dead} of 256 features are 0" in " ".join(sae.card.split())


def test_pictures_are_changed_a_little_and_the_same_way_again():
    picture, about = entities()["Greece"]
    assert about["domain"] == "country" and about["country-capital"] == "Athens"
    once, twice = (augmented(picture, np.random.default_rng(3)) for _ in range(2))
    assert once.size == picture.size and once.tobytes() == twice.tobytes() != picture.tobytes()
