"""Splicing, steering and ablating features, against plain hooks on a tiny Gemma 3 and a LLaVA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import bench, tiny_gemma3

from dictionaries import written
from vlm_lens import All, Generated, HookedVLM, Images, Last, Scale
from vlm_lens.dictionaries import Dictionary, DictionaryError, Splice
from vlm_lens.errors import PointError
from vlm_lens.measures import Logits

POINT, HOOK = "blocks.0.hook_resid_post", "model.layers.0.output"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> HookedVLM:
    return HookedVLM.from_pretrained(tiny_gemma3.save(tmp_path_factory.mktemp("gemma3")))


@pytest.fixture(scope="module")
def prompt(gemma):
    return gemma.prompt("a<image>b", [bench.noise((64, 48))])


@pytest.fixture(scope="module")
def weights():
    return written.weights()


@pytest.fixture(scope="module")
def sae(tmp_path_factory, weights) -> Dictionary:
    folder = written.gemma_scope(tmp_path_factory.mktemp("sae"), weights, hook_in=HOOK)
    return Dictionary.from_pretrained(folder)


def by_hand(gemma, prompt, change) -> torch.Tensor:
    """Logits of plain transformers with a plain hook on the first block."""
    block = gemma.hf_model.model.language_model.layers[0]

    def hook(module, inputs, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        new = x.clone()
        new[0] = torch.from_numpy(change(x[0].detach().numpy())).to(x)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return gemma.hf_model(**prompt.inputs).logits
    finally:
        handle.remove()


def test_the_error_term_leaves_every_bit(gemma, prompt, sae):
    plain = gemma.run(prompt)
    assert torch.equal(gemma.run(prompt, interventions=sae.splice()), plain)
    tokens = gemma.generate(prompt, max_new_tokens=4).tokens
    edit = sae.splice(All() + Generated())
    assert torch.equal(gemma.generate(prompt, max_new_tokens=4, interventions=edit).tokens, tokens)


def test_without_it_the_model_sees_the_reconstruction(gemma, prompt, sae, weights):
    activation = written.jump(weights["threshold"])
    want = by_hand(gemma, prompt, lambda x: written.coded(weights, x, activation)[1])
    got = gemma.run(prompt, interventions=sae.splice(error=False))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, gemma.run(prompt), atol=0.05)


@pytest.mark.parametrize("how", ["ablate", "clamp", "steer"])
def test_features_changed(gemma, prompt, sae, weights, how):
    x = gemma.run_with_cache(prompt, names_filter=POINT)[1][POINT][0].numpy()
    activation = written.jump(weights["threshold"])
    total = written.coded(weights, x, activation)[0].sum(0)
    feature = int(total.argmax())
    rows = [p for _, p in Images().resolve(prompt.layout)]

    def change(x):
        f = written.coded(weights, x, activation)[0][:, feature]
        by = {"ablate": -f, "clamp": 3.0 - f, "steer": np.full_like(f, 2.5)}[how]
        new = x.astype(np.float64)
        new[rows] += (by[:, None] * weights["w_dec"][feature])[rows]
        return new

    edit = {"ablate": lambda: sae.ablate(feature, at=Images()),
            "clamp": lambda: sae.clamp(feature, 3.0, at=Images()),
            "steer": lambda: sae.steer(feature, 2.5, at=Images())}[how]()  # fmt: skip
    want = by_hand(gemma, prompt, change)
    got = gemma.run(prompt, interventions=edit)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, gemma.run(prompt), atol=1e-3)


def test_edits_are_values(gemma, prompt, sae, tmp_path):
    edit = sae.ablate([3, 5], at=Last()) + sae.steer(2, 1.5, at=Last())
    again = type(edit).load(edit.save(tmp_path / "edit"))
    assert again == edit and hash(again) == hash(edit)
    torch.testing.assert_close(
        gemma.run(prompt, interventions=again), gemma.run(prompt, interventions=edit)
    )


def test_a_sweep_replays_them(gemma, prompt, sae):
    x = gemma.run_with_cache(prompt, names_filter=POINT)[1][POINT]
    busy = sae.encode(x)[0].sum(0).topk(3).indices.tolist()
    edits = [sae.ablate(f) for f in busy] + [sae.splice(error=False), sae.steer(busy[0], 4.0)]
    found = gemma.sweep(prompt, edits, measure=Logits(), engine="replay", progress=False)
    for edit, record in zip(edits, found.records, strict=True):
        logits = gemma.run(prompt, interventions=edit)[0, -1:]
        torch.testing.assert_close(record["logits"], logits, atol=1e-4, rtol=1e-4)


def test_new_tokens_too(gemma, prompt, sae):
    edit = sae.steer(1, 30.0, at=All() + Generated())
    tokens = gemma.generate(prompt, max_new_tokens=4, interventions=edit).tokens[0].tolist()
    plain = gemma.generate(prompt, max_new_tokens=4).tokens[0].tolist()
    text = dict(prompt.inputs)
    for token in tokens:  # each token from a full forward, steered everywhere
        logits = gemma.run(text, interventions=sae.steer(1, 30.0))
        assert int(logits[0, -1].argmax()) == token
        text = _longer(text, token)
    assert tokens != plain


def _longer(inputs, token):
    new = dict(inputs)
    for name, value in (("input_ids", token), ("attention_mask", 1), ("token_type_ids", 0)):
        if name in new:
            new[name] = torch.cat([new[name], torch.tensor([[value]])], dim=1)
    return new


def test_heads_side_by_side(gemma, prompt, tmp_path):
    w = written.weights()
    hook = "model.layers.1.self_attn.o_proj.input"
    sae = Dictionary.from_pretrained(written.gemma_scope(tmp_path, w, hook_in=hook))
    plain = gemma.run(prompt)
    assert torch.equal(gemma.run(prompt, interventions=sae.splice()), plain)
    block = gemma.hf_model.model.language_model.layers[1].self_attn.o_proj
    seen = []
    handle = block.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    gemma.run(prompt)
    handle.remove()
    activation = written.jump(w["threshold"])
    want = written.coded(w, seen[0][0].detach().numpy(), activation)[0]
    scores = sae.features(gemma, prompt, features=range(written.F))
    np.testing.assert_allclose(scores.values.to_numpy(), want, atol=1e-4)
    handle = block.register_forward_pre_hook(
        lambda m, args: (args[0] + 2.0 * torch.from_numpy(w["w_dec"][4]),)
    )
    steered = gemma.run(prompt)
    handle.remove()
    got = gemma.run(prompt, interventions=sae.steer(4, 2.0))
    torch.testing.assert_close(got, steered, atol=1e-4, rtol=1e-4)


class Transcoded:
    """A transcoder with an affine skip on block 0, by two plain hooks on plain transformers."""

    activation = staticmethod(written.jump(written.weights()["threshold"]))
    block = "layers.0"

    def __init__(self, gemma, prompt, w):
        self.gemma, self.prompt, self.w = gemma, prompt, w

    def features(self, x):
        return written.coded(self.w, x, self.activation, skip=True)

    def logits(self, change) -> torch.Tensor:
        """Under `change(what the MLP reads, what it gives after the norm) -> that`."""
        stack, seen = self.gemma.hf_model.model.language_model.get_submodule(self.block), []

        def write(module, args, output):
            new = change(seen[-1][0].numpy().astype(np.float64), output[0].numpy())
            return torch.from_numpy(new).to(output)[None]

        handles = [
            stack.pre_feedforward_layernorm.register_forward_hook(
                lambda module, args, output: seen.append(output)
            ),
            stack.post_feedforward_layernorm.register_forward_hook(write),
        ]
        try:
            with torch.no_grad():
                return self.gemma.hf_model(**self.prompt.inputs).logits
        finally:
            for handle in handles:
                handle.remove()


def test_a_transcoder_stands_in_for_the_mlp(gemma, prompt, tmp_path):
    w = written.weights()
    folder = written.gemma_scope(
        tmp_path, w, affine=True,
        hook_in="model.layers.0.pre_feedforward_layernorm.output",
        hook_out="model.layers.0.post_feedforward_layernorm.output",
    )  # fmt: skip
    coder = Dictionary.from_pretrained(folder)
    by_hand = Transcoded(gemma, prompt, w)
    plain = gemma.run(prompt)
    assert torch.equal(gemma.run(prompt, interventions=coder.splice()), plain)
    tokens = gemma.generate(prompt, max_new_tokens=3).tokens
    everywhere = coder.splice(All() + Generated())
    found = gemma.generate(prompt, max_new_tokens=3, interventions=everywhere)
    assert torch.equal(found.tokens, tokens)

    whole = by_hand.logits(lambda x, y: by_hand.features(x)[1])
    got = gemma.run(prompt, interventions=coder.splice(error=False))
    torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=0.05)

    name = "blocks.0.ln2.hook_normalized"
    x = gemma.run_with_cache(prompt, names_filter=name)[1][name][0].numpy()
    busy = np.argsort(-by_hand.features(x)[0].sum(0))[:2].tolist()
    rows = [p for _, p in Images().resolve(prompt.layout)]

    def changed(to):
        def change(x, y):
            f = by_hand.features(x)[0][:, busy]
            new = y.astype(np.float64)
            new[rows] += ((to - f) @ w["w_dec"][busy])[rows]
            return new

        return by_hand.logits(change)

    edits = {0.0: coder.ablate(busy, at=Images()), 2.0: coder.clamp(busy, 2.0, at=Images())}
    swept = gemma.sweep(
        prompt, [*edits.values(), coder.splice(error=False)], measure=Logits(), engine="replay",
        progress=False,
    )  # fmt: skip
    for (to, edit), record in zip(edits.items(), swept.records, strict=False):
        want = changed(to)
        got = gemma.run(prompt, interventions=edit)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(got, plain, atol=1e-3)
        torch.testing.assert_close(record["logits"], want[0, -1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(swept.records[2]["logits"], whole[0, -1:], atol=1e-4, rtol=1e-4)
    # what another intervention makes of the MLP's input is what is encoded
    louder = Scale(name, All(), 2.0)
    want = by_hand.logits(lambda x, y: by_hand.features(2 * x)[1])
    both = gemma.run(prompt, interventions=[coder.splice(error=False), louder])
    torch.testing.assert_close(both, want, atol=1e-4, rtol=1e-4)
    with gemma.intervening(coder.splice(error=False)):
        both = gemma.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: 2 * x)])
    torch.testing.assert_close(both, want, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(gemma, prompt, tmp_path):
    w = written.weights(d_in=16)
    narrow = Dictionary.from_pretrained(written.gemma_scope(tmp_path / "a", w, hook_in=HOOK))
    with pytest.raises(DictionaryError, match="width 16"):
        gemma.run(prompt, interventions=narrow.splice())
    with pytest.raises(DictionaryError, match="width 16"):
        narrow.features(gemma, prompt)
    far = Dictionary.from_pretrained(
        written.gemma_scope(tmp_path / "b", written.weights(), hook_in="model.layers.9.output")
    )
    with pytest.raises(PointError, match="blocks.9"):
        far.features(gemma, prompt)
    with pytest.raises(DictionaryError, match="features 0..23"):
        far.ablate(24)
    other = Dictionary.from_pretrained(
        written.eleuther(tmp_path / "layers.0.mlp", written.weights())
    )
    with pytest.raises(DictionaryError, match="post_feedforward_layernorm"):
        other.features(gemma, prompt)  # a post-norm family: the MLP's output is not hook_mlp_out
    across = Dictionary.from_pretrained(
        written.gemma_scope(
            tmp_path / "c", written.weights(),
            hook_in="model.layers.0.pre_feedforward_layernorm.output",
            hook_out="model.layers.1.post_feedforward_layernorm.output",
        )
    )  # fmt: skip
    with pytest.raises(DictionaryError, match="of one block"):
        gemma.run(prompt, interventions=across.splice())
    with pytest.raises(DictionaryError, match="numbers for"):
        Splice(far, All(), True, (1, 2), factor=(1.0,))
