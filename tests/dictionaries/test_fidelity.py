"""Explained variance and what a splice loses, by kind of position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import bench

from dictionaries import written
from vlm_lens import Images
from vlm_lens.dictionaries import Dictionary

POINT = "blocks.0.hook_resid_post"


@pytest.fixture
def sae(tmp_path) -> Dictionary:
    w = written.weights()
    w["w_dec"] = w["w_dec"] / 20
    return Dictionary.from_pretrained(
        written.saelens(tmp_path, w, "topk", k=written.K), point=POINT
    )


def test_by_kind_of_position(clip, sae):
    prompts = [clip.prompt("Q:<image>\nA:", [bench.noise((48, 40), seed=s)]) for s in range(2)]
    prompts.append(clip.prompt("Q:ab\nA:"))
    found = sae.fidelity(clip, prompts)
    values: dict[str, list] = {"image": [], "text": [], "special": []}
    for prompt in prompts:
        x = clip.run_with_cache(prompt, names_filter=POINT)[1][POINT][0].numpy()
        for place, kind in zip(x, prompt.layout.kinds, strict=True):
            values[str(kind).split()[0]].append(place)
    values["all"] = [p for kind in ("image", "text", "special") for p in values[kind]]
    w = {n: sae.coder.tensors[n].numpy() for n in ("w_enc", "w_dec", "b_enc", "b_dec")}
    for kind, places in values.items():
        x = np.stack(places).astype(np.float64)
        features, output = written.coded(w, x, written.largest(written.K))
        row = found.table.loc[kind]
        assert row.places == len(x)
        if kind == "special":  # the first token is the same in every prompt
            assert np.isnan(row.explained_variance)
        else:
            want = 1 - ((x - output) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
            assert row.explained_variance == pytest.approx(want, abs=1e-4)
        assert row.l0 == pytest.approx((features != 0).sum(1).mean())
    density = (features != 0).mean(0)
    np.testing.assert_allclose(found.density.numpy(), density, atol=1e-6)
    assert found.dead == np.flatnonzero(density == 0).tolist()

    lost = []
    for prompt in prompts[:2]:
        plain = clip.run(prompt)[0, -1].double().log_softmax(-1)
        edit = sae.splice(Images(), error=False)
        spliced = clip.run(prompt, interventions=edit)[0, -1].double().log_softmax(-1)
        lost.append(float(torch.nn.functional.kl_div(spliced, plain, log_target=True,
                                                     reduction="sum")))  # fmt: skip
    assert found.table.loc["image", "kl"] == pytest.approx(np.mean(lost), rel=1e-3)
    assert "features are 0 everywhere" in repr(found)


def test_a_transcoder_is_compared_with_what_it_writes(clip, tmp_path):
    w = written.weights()
    points = {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
    sae = Dictionary.from_pretrained(written.saelens(tmp_path, w, "transcoder", metadata=points))
    prompt = clip.prompt("Q:ab\nA:")
    names = ["blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"]
    _, cache = clip.run_with_cache(prompt, names_filter=names)
    x, y = (cache[n][0].numpy().astype(np.float64) for n in names)
    _, output = written.coded(w, x, written.relu)
    want = 1 - ((y - output) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    table = sae.fidelity(clip, [prompt]).table
    assert table.loc["all", "explained_variance"] == pytest.approx(want, rel=1e-4)
    mlp = clip.hf_model.model.language_model.layers[0].mlp
    handle = mlp.register_forward_hook(lambda m, args, out: torch.from_numpy(output)[None].to(out))
    spliced = clip.hf_model(**prompt.inputs).logits[0, -1].double().log_softmax(-1)
    handle.remove()
    plain = clip.run(prompt)[0, -1].double().log_softmax(-1)
    lost = torch.nn.functional.kl_div(spliced, plain, log_target=True, reduction="sum")
    assert table.loc["all", "kl"] == pytest.approx(float(lost.detach()), rel=1e-3)
