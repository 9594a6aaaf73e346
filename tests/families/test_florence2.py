"""Florence-2: encoder, decoder and what crosses between, against plain hooks of torch."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_florence2
from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    AttentionKnockout,
    Find,
    Generated,
    HookedVLM,
    Images,
    Last,
    Pair,
    Patches,
    RawPrompt,
)
from vlm_lens.dictionaries.stream import places_read
from vlm_lens.errors import InterventionError, PointError, PositionError, PromptError

TEXT = "<image>What is red?"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> HookedVLM:
    return HookedVLM.from_pretrained(tiny_florence2.save(tmp_path_factory.mktemp("florence2")))


@pytest.fixture(scope="module")
def prompt(vlm):
    return vlm.prompt(TEXT, [tiny.noise_picture(1, (64, 48))])


@pytest.fixture(scope="module")
def longer(vlm, prompt):
    """The same question with the beginning of an answer."""
    return vlm.as_prompt(prompt.inputs | {"decoder_input_ids": torch.tensor([[2, 30, 31, 40]])})


def plain(vlm, prompt, path, kind="output", change=None):
    """What one module takes or gives in plain transformers, and the logits, perhaps changed."""
    seen = {}

    def hook(module, args, *rest):
        x = args[0] if kind == "input" else rest[-1]
        x = x if isinstance(x, torch.Tensor) else x[0]
        seen["x"] = x.clone()
        if change is None:
            return None
        new = change(x.clone())
        return (new, *args[1:]) if kind == "input" else new

    module = vlm.hf_model.get_submodule(path)
    register = module.register_forward_pre_hook if kind == "input" else module.register_forward_hook
    handle = register(hook)
    try:
        with torch.no_grad():
            logits = vlm.hf_model(**prompt.inputs, use_cache=False).logits
    finally:
        handle.remove()
    return seen.get("x"), logits


def test_conforms(vlm, longer):
    bench.check_conforms(vlm, longer, cold=True)


def test_a_batch_of_questions_of_other_lengths_conforms(vlm):
    pictures = [tiny.noise_picture(i, (40, 30 + 8 * i)) for i in (1, 2)]
    both = vlm.prompt(["<image>What?", TEXT], pictures)
    assert both.length == 1 and len(both.layouts[0].encoder) == len(both.layouts[1].encoder)
    bench.check_conforms(vlm, both, quick=True)
    for row, (text, picture) in enumerate(zip(("<image>What?", TEXT), pictures, strict=True)):
        alone = vlm.run(vlm.prompt(text, [picture]))
        torch.testing.assert_close(vlm.run(both)[row], alone[0], rtol=1e-4, atol=1e-4)


LM = "model.language_model"


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("encoder.blocks.1.hook_resid_post", f"{LM}.encoder.layers.1", "output"),
        ("encoder.blocks.2.attn.hook_q", f"{LM}.encoder.layers.2.self_attn.q_proj", "output"),
        ("encoder.blocks.0.attn.hook_z", f"{LM}.encoder.layers.0.self_attn.out_proj", "input"),
        ("encoder.blocks.0.mlp.hook_post", f"{LM}.encoder.layers.0.fc2", "input"),
        ("blocks.1.cross_attn.hook_k", f"{LM}.decoder.layers.1.encoder_attn.k_proj", "output"),
        ("blocks.0.cross_attn.hook_z", f"{LM}.decoder.layers.0.encoder_attn.out_proj", "input"),
        ("blocks.0.hook_resid_mid", f"{LM}.decoder.layers.0.self_attn_layer_norm", "output"),
        ("blocks.1.hook_resid_mid_cross", f"{LM}.decoder.layers.1.encoder_attn_layer_norm",
         "output"),
        ("blocks.1.hook_resid_post", f"{LM}.decoder.layers.1", "output"),
        ("hook_embed", f"{LM}.decoder.embed_tokens", "output"),
        ("projector.hook_in", "model.multi_modal_projector", "input"),
    ],
)  # fmt: skip
def test_a_point_is_what_the_module_gives_and_a_write_acts_alike(vlm, longer, name, path, kind):
    logits, cache = vlm.run_with_cache(longer, names_filter=[name])
    x, _ = plain(vlm, longer, path, kind)
    if name == "projector.hook_in":
        x = x.flatten(2).transpose(1, 2)
    assert torch.equal(cache[name].flatten(), x.reshape(cache[name].shape).flatten())
    _, changed = plain(vlm, longer, path, kind, change=lambda x: x * 1.5)
    mine = vlm.run_with_hooks(longer, fwd_hooks=[(name, lambda x, hook: x * 1.5)])
    assert torch.equal(mine, changed)
    assert not torch.equal(mine, logits)


def test_patterns_of_the_cross_attention_are_those_of_eager(vlm, longer):
    eager = HookedVLM(type(vlm.hf_model)(vlm.hf_model.config))
    eager.hf_model.load_state_dict(vlm.hf_model.state_dict())
    eager.hf_model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        out = eager.hf_model(**longer.inputs, output_attentions=True, use_cache=False)
    scores = vlm.attention(longer, part="cross", at=Last())
    cross = torch.stack(out.cross_attentions)[:, 0, :, -1]
    torch.testing.assert_close(
        torch.as_tensor(scores.values.to_numpy()), cross, rtol=1e-4, atol=1e-5
    )
    own = vlm.attention(longer, part="encoder", at=Find("red"))
    at = longer.layout.encoder.find("red")
    asked = torch.stack(out.encoder_attentions)[:, 0, :, at]
    torch.testing.assert_close(torch.as_tensor(own.values.to_numpy()), asked, rtol=1e-4, atol=1e-5)
    assert own.values.shape[-1] == len(longer.layout.encoder)


def test_a_knockout_of_what_crosses_is_a_mask_on_the_encoders_output(vlm, longer):
    patches = longer.layout.encoder.image[0].positions
    masked = dict(longer.inputs)
    mask = masked["attention_mask"].clone()
    mask[0, list(patches)] = 0
    inner = vlm.hf_model.model
    with torch.no_grad():  # the encoder reads all, the decoder does not read the picture
        embeds = vlm.hf_model.get_input_embeddings()(masked["input_ids"])
        features = inner.get_image_features(masked["pixel_values"]).pooler_output
        embeds = embeds.masked_scatter(
            (masked["input_ids"] == 4)[..., None], features.flatten(0, 1)
        )
        encoded = inner.get_encoder()(inputs_embeds=embeds, attention_mask=masked["attention_mask"])
        expected = vlm.hf_model(
            encoder_outputs=encoded, attention_mask=mask,
            decoder_input_ids=masked["decoder_input_ids"], use_cache=False,
        ).logits  # fmt: skip
    cut = AttentionKnockout(All(), keys=Images(), part="cross")
    found = vlm.run(longer, interventions=cut)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(PointError, match="cross_attn"):
        vlm.run(longer, interventions=AttentionKnockout(
            Last(), keys=Images(), part="cross", layers=[9]))  # fmt: skip


def test_positions_count_in_the_sequence_of_the_point(vlm, prompt, longer):
    asked = longer.layout.encoder
    assert Find("red").resolve(longer.layout, "encoder") == [(0, asked.find("red"))]
    assert Last().resolve(longer.layout) == [(0, 3)]
    assert Last().resolve(longer.layout, "encoder") == [(0, asked.last)]
    cell = asked.image[0].patch(1, 2)
    assert asked.image[0].text.pixels(cell) == longer.layout.image[0].vision.pixels(6)
    with pytest.raises(PositionError, match=r"layout\.encoder"):
        longer.layout.image[0].patch(0, 0)
    with pytest.raises(PositionError, match="does not occur"):
        Find("red").resolve(longer.layout)
    value = torch.zeros(32)
    one = ActivationPatch("encoder.blocks.0.hook_resid_post", at=Find("red"), value=value)
    path = f"{LM}.encoder.layers.0"

    def zero(x):
        x[0, asked.find("red")] = 0
        return x

    assert torch.equal(vlm.run(longer, interventions=one), plain(vlm, longer, path, change=zero)[1])


def test_a_mean_of_the_encoder_is_over_what_it_reads(vlm, longer):
    """Over its picture's cells, or over all of its positions, not over the decoder's."""
    asked = longer.layout.encoder
    cells, word = [*asked.image[0].positions], asked.find("red")
    for by, pool, at in (
        ("picture_mean", cells, Patches(0, rows=0)),
        ("prompt_mean", [*range(len(asked))], Find("red")),
        ("mean", [*range(len(asked))], Find("red")),
    ):
        places = [p for _, p in at.resolve(longer.layout, "encoder")]

        def mean(x, pool=pool, places=places):
            x[0, places] = x[0, pool].mean(0)
            return x

        _, expected = plain(vlm, longer, f"{LM}.encoder.layers.0", change=mean)
        mine = vlm.run(longer, interventions=Ablate("encoder.blocks.0.hook_resid_post", at, by))
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InterventionError, match="over the picture or over the whole prompt"):
        vlm.run(longer, interventions=Ablate("encoder.hook_merged", Images(), "mean"))
    with pytest.raises(InterventionError, match="belongs to no picture"):
        vlm.run(longer, interventions=Ablate("encoder.hook_merged", At(word), "picture_mean"))


def test_what_many_prompts_read_in_the_encoder_knows_its_pictures_and_its_padding(vlm):
    prompts = [RawPrompt(t, [tiny.noise_picture(i, (40, 36))]) for i, t in enumerate(
        ("<image>What?", TEXT))]  # fmt: skip
    point = vlm.points()["encoder.blocks.1.hook_resid_post"]
    found = {}
    for read in places_read(vlm, point, prompts):
        for x, owner, image, kind in zip(
            read.x, read.numbers, read.images, read.kinds, strict=True
        ):
            found.setdefault(owner, []).append((x, image, kind))
    for number, raw in enumerate(prompts):
        alone = vlm.as_prompt(raw)
        _, cache = vlm.run_with_cache(alone, names_filter=point.name)
        x, images, kinds = zip(*found[number], strict=True)
        torch.testing.assert_close(torch.stack(x), cache[point.name][0], rtol=1e-4, atol=1e-5)
        cells = {*alone.layout.encoder.image[0].positions}
        assert {i for i, image in enumerate(images) if image == 0} == cells
        assert {k for i, k in enumerate(kinds) if i not in cells} <= {"text", "special"}


def test_painting_a_block_changes_the_cell_that_the_layout_names(vlm):
    grey = bench.grey((64, 48))
    base = vlm.prompt(TEXT, [grey])
    _, before = vlm.run_with_cache(base, names_filter=["projector.*"])
    picture = base.layout.image[0]
    for cell in picture.vision.grids[0].positions:
        x0, y0, x1, y1 = picture.vision.pixels(cell)
        w, h = (x1 - x0) / 4, (y1 - y0) / 4  # the middle: convolutions read over its edges
        painted = grey.copy()
        painted.paste((250, 20, 240), (round(x0 + w), round(y0 + h), round(x1 - w), round(y1 - h)))
        _, after = vlm.run_with_cache(vlm.prompt(TEXT, [painted]), names_filter=["projector.*"])
        change = (after["projector.hook_in"] - before["projector.hook_in"])[0].norm(dim=-1)
        assert int(change.argmax()) == cell
        assert picture.projector.pixels(cell + 1) == picture.vision.pixels(cell)
    for cell in (0, 7):  # and the projector gives it after the mean of all cells
        write = ActivationPatch("projector.hook_in", at=At((cell,)), value=torch.ones(24))
        _, after = vlm.run_with_cache(
            base, names_filter=["projector.hook_out"], interventions=write
        )
        moved = (after["projector.hook_out"] != before["projector.hook_out"])[0].any(-1)
        assert moved.nonzero().flatten().tolist() == [0, cell + 1]


def test_generation_reads_writes_and_continues_an_answer(vlm, prompt):
    with torch.no_grad():
        expected = vlm.hf_model.generate(
            **{k: v for k, v in prompt.inputs.items() if k != "decoder_input_ids"},
            max_new_tokens=4, do_sample=False,
        )  # fmt: skip
    made = vlm.generate(
        prompt, max_new_tokens=4, names_filter=["blocks.1.hook_resid_post",
        "blocks.1.cross_attn.hook_pattern"], positions=Last() + Generated(),
    )  # fmt: skip
    assert torch.equal(made.tokens, expected[:, 1:])
    n_new = made.tokens.shape[1]
    answer = torch.cat([torch.tensor([[2]]), made.tokens[:, :-1]], 1)
    whole = vlm.as_prompt(prompt.inputs | {"decoder_input_ids": answer})
    _, cache = vlm.run_with_cache(whole, names_filter=list(made.cache))
    for name in made.cache:
        found = made.cache[name]
        if name.endswith("pattern"):
            assert found.shape == (1, 4, n_new, len(prompt.layout.encoder))
        torch.testing.assert_close(found, cache[name][..., : found.shape[-2], :], rtol=1e-4,
                                   atol=1e-5)  # fmt: skip
    cut = ActivationPatch("encoder.blocks.1.hook_resid_post", at=Images(), value=torch.zeros(32))
    changed = vlm.generate(prompt, max_new_tokens=2, interventions=cut, eos_token_id=None)
    assert changed.tokens[0, 0] == vlm.run(prompt, interventions=cut)[0, -1].argmax()


def test_sweeps_run_in_full_and_say_why(vlm, longer):
    zero = ActivationPatch(
        "encoder.blocks.*.hook_resid_post", at=Find("red"), value=torch.zeros(32)
    )
    result = vlm.sweep(longer, zero.each_layer(), measure="logits", progress=False)
    assert "cross-attention" in str(result)
    one = ActivationPatch("encoder.blocks.1.hook_resid_post", at=Find("red"), value=torch.zeros(32))
    expected = vlm.run(longer, interventions=one, last_logits=1)[0, -1]
    assert torch.equal(result.stack("logits")[1].flatten()[-128:], expected)


def test_pairs_map_what_the_encoder_reads(vlm):
    picture = tiny.noise_picture(1, (64, 48))
    two = (vlm.prompt(f"<image>What is {word}?", [picture]) for word in ("red", "big"))
    pair = Pair(*two, answer=30, other=31)
    asked = pair.clean.layout.encoder
    scores = pair.patch(vlm, "encoder.blocks.1.hook_resid_post", at=Find("red"))
    moved = ActivationPatch(
        "encoder.blocks.1.hook_resid_post", at=Find("big"),
        value=vlm.run_with_cache(pair.clean, names_filter=["encoder.blocks.1.hook_resid_post"])[1][
            "encoder.blocks.1.hook_resid_post"][0, asked.find("red")],
    )  # fmt: skip
    logits = [
        vlm.run(pair.clean),
        vlm.run(pair.corrupt),
        vlm.run(pair.corrupt, interventions=moved),
    ]
    clean, corrupt, patched = (float(x[0, -1, 30] - x[0, -1, 31]) for x in logits)
    share = (patched - corrupt) / (clean - corrupt)
    assert float(scores.values.squeeze()) == pytest.approx(share, rel=1e-4)


def test_the_towers_last_stage_is_its_map_cell_by_cell(vlm, prompt):
    point = "vision.blocks.0.hook_resid_post"
    seen, logits = plain(vlm, prompt, "model.vision_tower.blocks.1.0")
    ours, cache = vlm.run_with_cache(prompt, names_filter=[point, "projector.hook_in"])
    assert torch.equal(ours, logits)
    assert torch.equal(cache[point], seen.flatten(2).mT)
    assert torch.equal(cache[point], cache["projector.hook_in"])
    assert cache[point].shape[1] == tiny_florence2.CELLS**2

    def change(x):
        x[:, :, 1, 1] = 0.0
        return x

    _, expected = plain(vlm, prompt, "model.vision_tower.blocks.1.0", change=change)
    edit = ActivationPatch(point, at=Patches(0, rows=1, cols=1), value=torch.zeros(24))
    torch.testing.assert_close(vlm.run(prompt, interventions=edit), expected)


def test_what_cannot_be_read_says_so(vlm, prompt):
    with pytest.raises(PromptError, match="at the beginning"):
        vlm.prompt("What<image>?", [tiny.noise_picture(1, (64, 48))])
    with pytest.raises(PromptError, match="begin with the token"):
        vlm.run(prompt.inputs | {"decoder_input_ids": torch.tensor([[30, 31]])})
    with pytest.raises(PromptError, match="one by one"):
        vlm.run(prompt.inputs | {"decoder_input_ids": torch.tensor([[2, 31]]),
                                 "decoder_attention_mask": torch.tensor([[1, 0]])})  # fmt: skip
    with pytest.raises(PointError, match="norms each sum"):
        vlm.points("blocks.0.ln1.hook_normalized")
    with pytest.raises(PointError, match="stages"):
        vlm.points("vision.stages.0.hook_resid_post")
    with pytest.raises(PointError, match="no norm stands"):
        vlm.points("ln_final.hook_normalized")
