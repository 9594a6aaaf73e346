"""circuit-tracer's transcoders, from folders written as it writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import bench
from safetensors.torch import save_file

from dictionaries import written
from vlm_lens import All, Generated, LogitDiff
from vlm_lens.dictionaries import Dictionary, DictionaryError
from vlm_lens.errors import PointError


@pytest.fixture(scope="module")
def weights():
    return written.weights()


@pytest.mark.parametrize(
    "kind, config, activation",
    [
        ("jump_relu", {}, lambda w: written.jump(w["threshold"])),
        ("relu", {}, lambda w: written.relu),
        ("jump_relu", {"activation": "relu"}, lambda w: written.relu),
        ("topk", {}, lambda w: written.largest(5, True)),
        ("relu", {"activation": "topk", "k": written.K}, lambda w: written.largest(5, True)),
    ],
)
def test_one_file_is_one_transcoder(tmp_path, weights, kind, config, activation):
    written.circuit_tracer(tmp_path, weights, kind=kind, skip=True, **config)
    for where, name in ((tmp_path, "layer_0"), (tmp_path, "layer_0.safetensors"),
                        (tmp_path / "layer_0.safetensors", "")):  # fmt: skip
        coder = Dictionary.from_pretrained(where, name)
        written.check(coder, weights, activation(weights), skip=True)
    assert coder.about["model"] == "meta-llama/Llama-3.2-1B"
    assert (coder.point, coder.point_out) == (
        "blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_out",
    )  # fmt: skip
    second = Dictionary.from_pretrained(tmp_path, "layer_1")
    assert second.point.startswith("blocks.1.")
    torch.testing.assert_close(second.direction(3), 2 * coder.direction(3))


def test_it_stands_in_for_the_mlp(clip, tmp_path, weights):
    """Against the model with its MLP's output replaced by a plain hook."""
    written.circuit_tracer(tmp_path, weights, skip=True)
    coder = Dictionary.from_pretrained(tmp_path, "layer_1")
    ours = {**weights, "w_dec": 2 * weights["w_dec"]}
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    mlp = clip.hf_model.model.language_model.layers[1].mlp
    read: list[np.ndarray] = []

    def replace(module, args, output):
        read.append(args[0][0].numpy())
        made = written.coded(ours, read[-1], written.jump(ours["threshold"]), skip=True)[1]
        return torch.from_numpy(made).to(output)[None]

    handle = mlp.register_forward_hook(replace)
    try:
        with torch.no_grad():
            want = clip.hf_model(**prompt.inputs).logits
    finally:
        handle.remove()
    plain = clip.run(prompt)
    got = clip.run(prompt, interventions=coder.splice(error=False))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=0.05)
    assert torch.equal(clip.run(prompt, interventions=coder.splice()), plain)
    scores = coder.features(clip, prompt, features=range(written.F))
    features = written.coded(ours, read[0], written.jump(ours["threshold"]))[0]
    np.testing.assert_allclose(scores.values.to_numpy(), features, atol=1e-4)
    tokens = clip.generate(prompt, max_new_tokens=3).tokens
    edit = coder.splice(All() + Generated())
    again = clip.generate(prompt, max_new_tokens=3, interventions=edit)
    assert torch.equal(again.tokens, tokens)


def test_features_are_attributed(clip, tmp_path, weights):
    """Activation times gradient, with the gradient taken at the MLP by plain torch."""
    coder = Dictionary.from_pretrained(written.circuit_tracer(tmp_path, weights), "layer_0")
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    mlp = clip.hf_model.model.language_model.layers[0].mlp
    kept: list[torch.Tensor] = []

    def keep(module, args, output):
        kept.extend((args[0].detach(), output.detach().requires_grad_()))
        return kept[1]

    handle = mlp.register_forward_hook(keep)
    try:
        logits = clip.hf_model(**prompt.inputs).logits[0, -1]
    finally:
        handle.remove()
    (slope,) = torch.autograd.grad(logits[5] - logits[9], kept[1])
    features = written.coded(weights, kept[0][0].numpy(), written.jump(weights["threshold"]))[0]
    want = features * (slope[0].double().numpy() @ weights["w_dec"].T)
    found = coder.attribution(clip, prompt, LogitDiff(5, 9), features=range(written.F))
    np.testing.assert_allclose(found.values.to_numpy(), want, atol=1e-5, rtol=1e-3)
    assert np.abs(want).max() > 0.01


def test_hooks_that_are_no_point_need_one(tmp_path, weights):
    normed = written.circuit_tracer(
        tmp_path / "a", weights, feature_input_hook="ln2.hook_normalized",
        feature_output_hook="hook_mlp_out",
    )  # fmt: skip
    with pytest.raises(DictionaryError, match=r"ln2.hook_normalized .* no point here.*point="):
        Dictionary.from_pretrained(normed, "layer_1")
    coder = Dictionary.from_pretrained(normed, "layer_1", point="blocks.1.hook_resid_mid")
    assert (coder.point, coder.point_out) == ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    stream = written.circuit_tracer(tmp_path / "b", weights, feature_input_hook="hook_resid_mid")
    assert Dictionary.from_pretrained(stream, "layer_0").point == "blocks.0.hook_resid_mid"
    other = written.circuit_tracer(tmp_path / "c", weights, feature_output_hook="mlp.hook_weird")
    with pytest.raises(DictionaryError, match=r"mlp.hook_weird .* no point here.*point_out="):
        Dictionary.from_pretrained(other, "layer_0", point="blocks.0.hook_resid_mid")
    (stream / "config.yaml").unlink()  # a transcoder is never taken for an autoencoder
    with pytest.raises(DictionaryError, match="point_out="):
        Dictionary.from_pretrained(stream, "layer_0", point="blocks.0.hook_resid_mid")


def test_an_mlp_with_a_norm_after_it_is_told_apart(tmp_path, weights):
    from families import tiny_gemma3

    from vlm_lens import HookedVLM

    gemma = HookedVLM(tiny_gemma3.model().eval(), tiny_gemma3.processor())
    folder = written.circuit_tracer(tmp_path / "a", weights)
    with pytest.raises(PointError, match="a norm or a gate stands between"):
        gemma.run("ab", interventions=Dictionary.from_pretrained(folder, "layer_0").splice())
    after = written.circuit_tracer(tmp_path / "b", weights, feature_output_hook="hook_mlp_out")
    coder = Dictionary.from_pretrained(after, "layer_0")
    plain = gemma.run("ab")
    assert torch.equal(gemma.run("ab", interventions=coder.splice()), plain)


def test_what_cannot_be_read_is_told(tmp_path, weights):
    folder = written.circuit_tracer(tmp_path / "a", weights, layers=range(11))
    with pytest.raises(DictionaryError, match="name one of layer_0, layer_1, layer_2"):
        Dictionary.from_pretrained(folder)
    with pytest.raises(
        DictionaryError, match="has no 'layer_11'; below it .* Did you mean 'layer_1"
    ):
        Dictionary.from_pretrained(folder, "layer_11")
    with pytest.raises(DictionaryError, match="below it are a/layer_0, a/layer_1, a/layer_10"):
        Dictionary.from_pretrained(tmp_path)
    across = tmp_path / "b"
    across.mkdir()
    for layer in range(2):
        held = {f"W_enc_{layer}": torch.zeros(4, 2)}
        save_file(held, across / f"W_enc_{layer}.safetensors")
    with pytest.raises(DictionaryError, match="cross-layer transcoder"):
        Dictionary.from_pretrained(across)
    elsewhere = written.circuit_tracer(
        tmp_path / "c", weights, layers=(), transcoders=["hf://google/gemma-scope/params.npz"]
    )
    with pytest.raises(DictionaryError, match="elsewhere, hf://google/gemma-scope"):
        Dictionary.from_pretrained(elsewhere)
    for config, message in (
        ({"activation": "topk"}, "give k="),
        ({"activation": "topk", "k": "many"}, "k, how many .* not 'many'"),
        ({"feature_input_hook": ["mlp.hook_in"]}, r"\['mlp.hook_in'\] of .* no point here"),
        ({"activation": "gated"}, "activation 'gated'"),
    ):
        folder = written.circuit_tracer(tmp_path / "d", weights, kind="relu", **config)
        with pytest.raises(DictionaryError, match=message):
            Dictionary.from_pretrained(folder, "layer_0")
    for text, message in (("a: [", "cannot be read"), ("- 1", "holds no settings"),
                          ("a: !!python/object:os.system {}", "cannot be read")):  # fmt: skip
        (folder / "config.yaml").write_text(text)
        with pytest.raises(DictionaryError, match=message):
            Dictionary.from_pretrained(folder, "layer_0")
