"""BLIP-2: queries instead of patches, a language model that generates by itself."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_blip2
from vlm_lens import Ablate, HookedVLM, Images, Patches
from vlm_lens.errors import ModelError, PointError, PositionError, PromptError
from vlm_lens.measures import GeneratedTokens
from vlm_lens.reading.resampled import patch_weights

MODEL = "blip2"

QUERIES = tiny_blip2.QUERIES


def test_facts(vlm):
    assert vlm.cfg.vision.n_class_tokens == 1
    points = vlm.points()
    assert points["projector.blocks.1.attn.hook_pattern"].space == "projector"
    assert points["projector.blocks.2.cross_attn.hook_k"].space == "vision"
    assert "projector.blocks.1.cross_attn.hook_k" not in points
    assert points["projector.hook_out"].sizes == (None, None, 32)
    assert all(p.writable for p in points.values())
    with pytest.raises(PointError, match="normalises each sum"):
        vlm.points("projector.blocks.0.hook_resid_mid")


@pytest.mark.parametrize("text", ["Question: how many? Answer:", ""])
def test_a_picture_at_the_beginning_stands_where_the_processor_puts_it(vlm, text):
    picture = tiny.noise_picture(0, (40, 30))
    own = vlm.processor(images=picture, text=text, return_tensors="pt")
    prompt = vlm.prompt("<image>" + text, [picture])
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(prompt.inputs[name], own[name]), name
    assert prompt.layout.image[0].positions == tuple(range(QUERIES))
    assert torch.equal(vlm.run(prompt), tiny.plain_logits(vlm.hf_model, dict(own)))


def test_a_picture_elsewhere_stays_where_it_is(vlm):
    prompt = vlm.prompt("<image>a<image>b", [tiny.noise_picture(i) for i in range(2)])
    assert [im.positions[0] for im in prompt.layout.images] == [0, QUERIES + 2]
    _, cache = vlm.run_with_cache(prompt, names_filter=["projector.hook_out", "hook_merged"])
    decoder = vlm.hf_model.language_model.model.decoder
    with torch.no_grad():
        position = decoder.embed_positions(prompt.inputs["attention_mask"], 0)[0]
    for number, image in enumerate(prompt.layout.images):
        at = list(image.positions)
        expected = cache["projector.hook_out"][number] + position[at]
        torch.testing.assert_close(cache["hook_merged"][0, at], expected)


def test_the_qformers_points_are_what_its_modules_take_and_give(vlm):
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture(0, (40, 30))])
    _, cache = vlm.run_with_cache(prompt, names_filter=["projector.*", "vision.hook_out"])
    former = vlm.hf_model.qformer
    assert torch.equal(cache["projector.hook_in"], cache["vision.hook_out"])
    block = former.encoder.layer[0]
    start, end = (cache[f"projector.blocks.0.hook_resid_{n}"] for n in ("pre", "post"))
    with torch.no_grad():
        assert torch.equal(start, former.layernorm(vlm.hf_model.query_tokens))
        norm = block.attention.output.LayerNorm
        after = norm(start + cache["projector.blocks.0.hook_attn_out"])
        norm = block.crossattention.output.LayerNorm
        crossed = norm(after + cache["projector.blocks.0.hook_cross_attn_out"])
        norm = block.output_query.LayerNorm
        torch.testing.assert_close(norm(crossed + cache["projector.blocks.0.hook_mlp_out"]), end)
        keys = block.crossattention.attention.key(cache["projector.hook_in"]).unflatten(-1, (4, 4))
        out = vlm.hf_model.language_projection(cache["projector.blocks.2.hook_resid_post"])
    assert torch.equal(cache["projector.blocks.0.cross_attn.hook_k"], keys)
    assert torch.equal(cache["projector.hook_out"], out)


def test_patch_weights_are_the_mean_of_eager_cross_attention(vlm):
    prompt = vlm.prompt("<image>:<image>", [tiny.noise_picture(i) for i in range(2)])
    _, cache = vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")
    twin = tiny.eager_copy(vlm.hf_model)
    seen = []
    for layer in (0, 2):
        attention = twin.qformer.encoder.layer[layer].crossattention.attention
        attention.register_forward_hook(lambda m, args, out: seen.append(out[1]))
    tiny.plain_logits(twin, prompt.inputs)
    for image in range(2):
        weights = patch_weights(cache, image)
        mean = torch.stack([w[image].mean(0) for w in seen]).mean(0)
        torch.testing.assert_close(weights, mean[:, 1:].reshape(QUERIES, 4, 4))


def test_a_position_in_the_text_has_no_patch(vlm):
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture(0, (40, 30))])
    image = prompt.layout.image[0]
    assert image.vision.grid().positions == tuple(range(1, 17))
    assert image.vision.sequences == ((0, tuple(range(17))),)
    with pytest.raises(PositionError, match="reads all patches"):
        image.patch(0, 0)
    with pytest.raises(PositionError, match="reads all patches"):
        vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Patches()))


@pytest.mark.parametrize(
    "name", ["hook_merged", "blocks.0.mlp.hook_post", "blocks.1.attn.hook_z", "projector.hook_out",
             "hook_embed"]
)  # fmt: skip
def test_generation(vlm, name):
    """The model around the language model is called once; places hold all the same."""
    pictures = [tiny.noise_picture(i, (20, 16)) for i in range(2)]
    prompt = vlm.prompt(["<image>b:", "longer<image>c"], pictures)
    at = prompt.length - 1 if name == "hook_embed" else None
    bench.check_grown(vlm, prompt, name, at)


def test_a_second_generation_in_the_same_context(vlm):
    prompt = vlm.prompt("<image>b:", [tiny.noise_picture(0, (20, 16))])
    longer = vlm.prompt("<image>some more text:", [tiny.noise_picture(0, (20, 16))])
    last = Ablate("hook_embed", at=-1)
    once = [vlm.generate(p, max_new_tokens=3, interventions=last).tokens for p in (prompt, longer)]
    seen = []
    with vlm.hooks([("hook_embed", lambda x, hook: seen.append(x.shape[1]))]):
        again = [
            vlm.generate(p, max_new_tokens=3, interventions=last).tokens for p in (prompt, longer)
        ]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert seen[0] == prompt.length


def test_replay_but_for_tokens_after_the_first(vlm):
    prompt = vlm.prompt("<image>b:", [tiny.noise_picture(0, (20, 16))])
    edit = Ablate("hook_merged", Images())
    for n, engine in ((1, "replay"), (2, "full")):
        swept = vlm.sweep(prompt, [edit], measure=GeneratedTokens(n), progress=False)
        assert swept.engines == {engine: 1}
        tokens = vlm.generate(prompt, max_new_tokens=n, interventions=edit).tokens
        assert swept.records[0]["tokens"] == tokens[0].tolist()


def test_errors(vlm):
    with pytest.raises(PromptError, match="HookedVLM\\(vlm.hf_model.language_model"):
        vlm.prompt("no picture")
    text = HookedVLM(vlm.hf_model.language_model, vlm.tokenizer)
    assert text.run("no picture").shape[-1] == vlm.cfg.d_vocab
    with pytest.raises(ModelError, match="encoder-decoder 't5'"):
        HookedVLM(tiny_blip2.build("t5"))
    with pytest.raises(ModelError, match="image_token_index is None"):
        HookedVLM(tiny_blip2.build(image_token_index=None))
    bare = tiny_blip2.processor()
    bare.num_query_tokens = None
    with pytest.raises(PromptError, match="num_query_tokens"):
        HookedVLM(vlm.hf_model, bare).prompt("<image>", [tiny.noise_picture()])
