"""Models of no registered family: what a run shows is found, and what is not is told."""

from __future__ import annotations

import pytest
import tiny
import torch
from reach import trial
from reach.builder import build as build_type
from reach.inputs import example
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    XLMConfig,
    XLMWithLMHeadModel,
)

from families import bench, texts
from families.texts import BRANCHES, FULL, TEXTS
from vlm_lens import Ablate, HookedVLM, Images, Last, LogProb, Patches, VLMLensError

INPUTS = {
    "input_ids": torch.tensor([[0, 0, 1, 5, 7, 9, 11], [1, 33, 21, 40, 12, 6, 8]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7]),
}
ONE = {"input_ids": INPUTS["input_ids"][1:], "attention_mask": INPUTS["attention_mask"][1:]}


class NewConfig(LlavaConfig):
    model_type = "new_vlm"


class NewVLM(LlavaForConditionalGeneration):
    config_class = NewConfig


def new_vlm() -> HookedVLM:
    made = tiny.llava_config("siglip", "mistral").to_dict()
    made.pop("model_type")
    return HookedVLM(tiny.randomize(NewVLM(NewConfig(**made))), tiny.reader("siglip-mistral"))


# ---------------------------------------------------------------------- language models


@pytest.mark.parametrize("name", TEXTS)
def test_a_language_model_conforms_at_its_level(name):
    vlm = HookedVLM(texts.build(name))
    assert "by structure" in vlm.cfg.family
    bench.check_conforms(vlm, ONE)
    kinds = {p.kind for p in vlm.points().values()}
    level = TEXTS[name][2]
    assert ({"attn_out", "resid_mid"} & kinds != set()) == (level in (FULL, BRANCHES))
    within = {"attn.q", "attn.k", "attn.v", "attn.z", "mlp.pre", "mlp.post"}
    assert (within <= kinds) == (level == FULL)
    assert {"resid_pre", "resid_post", "merged", "embed", "logits"} <= kinds
    for lacking in vlm.architecture.points.missing.values():
        assert lacking.endswith(".")


@pytest.mark.parametrize("name", ["gpt2", "granite", "mixtral", "deepseek_v3", "olmo2"])
def test_a_padded_batch_conforms(name):
    bench.check_conforms(HookedVLM(texts.build(name)), INPUTS, cold=True)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "olmo2", "qwen3_moe"])
def test_eager_attention_shows_the_same_points(name):
    usual, eager = (HookedVLM(texts.build(name, attention=a)) for a in ("sdpa", "eager"))
    assert list(usual.points()) == list(eager.points())
    bench.check_conforms(eager, ONE, quick=True)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "granite", "olmo2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_shows_the_same_points(name, dtype):
    usual, half = HookedVLM(texts.build(name)), HookedVLM(texts.build(name).to(dtype))
    assert list(usual.points()) == list(half.points())
    bench.check_conforms(half, ONE, quick=True)


def test_queries_keys_and_values_of_a_fused_projection():
    """Columns one after the other in GPT-2 and Phi-3 (fewer keys than queries), by head in NeoX."""
    for name, path, attn in (
        ("gpt2", "transformer.h.1.attn.c_attn", "blocks.1."),
        ("phi3", "model.layers.1.self_attn.qkv_proj", "blocks.1."),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", "blocks.1."),
    ):
        vlm = HookedVLM(texts.build(name))
        seen = []
        handle = vlm.hf_model.get_submodule(path).register_forward_hook(
            lambda m, args, out, seen=seen: seen.append(out)
        )
        cache = vlm.run_with_cache(ONE, names_filter=f"{attn}attn.hook_?")[1]
        handle.remove()
        q, k, v = (cache[f"{attn}attn.hook_{n}"] for n in "qkv")
        if name == "gpt_neox":
            expected = seen[0].unflatten(-1, (4, 3, 8)).unbind(-2)
        else:
            sizes = [8 * x.shape[2] for x in (q, k, v)]
            expected = [x.unflatten(-1, (-1, 8)) for x in seen[0].split(sizes, -1)]
        for mine, theirs in zip((q, k, v), expected, strict=True):
            assert torch.equal(mine, theirs), name


def test_what_a_block_adds_is_scaled_as_the_model_scales_it():
    vlm = HookedVLM(texts.build("granite"))
    _, cache = vlm.run_with_cache(ONE)
    block = vlm.hf_model.model.layers[0]
    with torch.no_grad():
        mlp = block.mlp(cache["blocks.0.ln2.hook_normalized"])
    torch.testing.assert_close(cache["blocks.0.hook_mlp_out"], 0.5 * mlp)
    total = cache["blocks.0.hook_resid_mid"] + cache["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(total, cache["blocks.0.hook_resid_post"])
    assert vlm.architecture.decoder.logit_scale == pytest.approx(1 / 4)


def test_the_scores_of_experts():
    vlm = HookedVLM(texts.build("mixtral"))
    _, cache = vlm.run_with_cache(ONE, names_filter=["blocks.0.*"])
    router = vlm.hf_model.model.layers[0].mlp.gate
    expected = cache["blocks.0.ln2.hook_normalized"] @ router.weight.T
    torch.testing.assert_close(cache["blocks.0.mlp.hook_router_logits"], expected)
    with pytest.raises(VLMLensError, match="mixture of experts"):
        vlm.points("blocks.0.mlp.hook_post")
    with pytest.raises(VLMLensError, match="has chosen its experts"):
        vlm.run(ONE, interventions=Ablate("blocks.0.mlp.hook_router_logits", at=0))


@pytest.mark.parametrize("name", tiny.LMS)
def test_what_is_found_is_what_is_described(name, llama):
    """The parts of a described model, found as if it were none, are the same tensors."""
    from vlm_lens.engine.firing import Handler
    from vlm_lens.engine.hooks import HookedRun
    from vlm_lens.families.parts.architecture import assemble
    from vlm_lens.families.parts.found import found_decoder
    from vlm_lens.points.sites import InputSite

    model = tiny.build(name)
    described = HookedVLM(model).architecture.points
    found = found_decoder(model)
    first = InputSite(f"{found.decoder.stack.path}.0")
    points = assemble(model, "found", found.decoder, first).points
    assert set(points) == set(described)
    seen: dict[str, list] = {n: [] for n in points}
    for table in (described, points):
        handlers = {n: [Handler(lambda x, firing, n=n: seen[n].append(x.clone()))] for n in table}
        with torch.no_grad(), HookedRun(model, table, handlers):
            model(**ONE, use_cache=False)
    for n, (one, two) in seen.items():
        assert torch.equal(one, two), n
    assert found.decoder.stack.size == HookedVLM(model).architecture.decoder.stack.size


def test_an_embedding_that_is_not_called_is_told(monkeypatch):
    model = texts.build("gpt2")
    inner, table = model.forward, model.get_input_embeddings().weight

    def forward(input_ids, **kwargs):
        return inner(inputs_embeds=table[input_ids], **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(VLMLensError, match="without calling transformer.wte"):
        HookedVLM(model)


def test_nothing_is_left_behind_by_the_recorded_forward():
    model = texts.build("gpt2")
    state, hooks = list(model.state_dict()), tiny.hook_state(model)
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        HookedVLM(model)
    assert model.training and list(model.state_dict()) == state
    assert tiny.hook_state(model) == hooks


def test_one_small_forward_is_all_that_wrapping_costs(monkeypatch):
    model = texts.build("phi3")
    calls, block = [], model.model.layers[0]
    forward = block.forward

    def counted(x, *args, **kwargs):
        calls.append(x.shape[:2].numel())
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(block, "forward", counted)
    HookedVLM(model)
    assert len(calls) == 1 and calls[0] <= 8


def test_the_tower_is_run_once_when_it_is_wrapped():
    model = build_type("cohere2_vision")
    runs: dict[str, int] = {"language_model": 0, "vision_tower": 0}
    for name in runs:
        model.model.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: runs.update({name: runs[name] + 1})
        )
    HookedVLM(model)
    assert runs == {"language_model": 1, "vision_tower": 1}


@pytest.mark.parametrize("model_type", ["t5gemma2", "lfm2_vl", "perception_lm"])
def test_what_a_projector_reads_is_as_wide_as_declared(model_type):
    vlm, prompt, _ = trial.read(model_type)
    _, cache = vlm.run_with_cache(prompt, names_filter="projector.hook_in")
    assert vlm.points()["projector.hook_in"].sizes[-1] == cache["projector.hook_in"].shape[-1]


# ---------------------------------------------------------------------- towers of other kinds

_LAST = "encoder.stages.2.layers.0"  # of a ConvNeXt


@pytest.mark.parametrize(
    ("model_type", "module", "point"),
    [
        ("fast_vlm", f"model.vision_tower.{_LAST}", "vision.blocks.0.hook_resid_post"),
        ("gemma3n", f"model.vision_tower.net.{_LAST}", "vision.blocks.0.hook_resid_pre"),
        ("kosmos-2", "vision_model.model.encoder.layers.1", "vision.blocks.1.hook_resid_post"),
        ("kosmos-2.5", "vision_model.encoder.layer.1", "vision.blocks.1.hook_resid_post"),
        ("molmo2", "model.vision_tower.layers.0", "vision.blocks.0.hook_resid_post"),
    ],
)
def test_a_towers_stream_is_what_its_block_gives(model_type, module, point):
    """A map cell by cell; and a write to the last block changes the logits as a hook's does."""
    model = build_type(model_type)
    vlm = HookedVLM(model)
    prompt = vlm.as_prompt(example(model))
    seen = {}

    def hook(module, args, out):
        x = args[0] if point.endswith("pre") else out if isinstance(out, torch.Tensor) else out[0]
        seen["x"] = x.detach().clone()

    handle = model.get_submodule(module).register_forward_hook(hook)
    with torch.no_grad():
        model(**prompt.inputs, use_cache=False)
    handle.remove()
    _, cache = vlm.run_with_cache(prompt, names_filter=[point])
    expected = seen["x"].flatten(2).mT if seen["x"].dim() == 4 else seen["x"]
    assert torch.equal(cache[point], expected)
    changed = vlm.run_with_hooks(prompt, fwd_hooks=[(point, lambda x, hook: -x)])
    assert not torch.equal(changed, vlm.run(prompt))


@pytest.mark.parametrize(
    ("model_type", "name", "why"),
    [
        ("fast_vlm", "vision.stages.0.hook_resid_post", "maps of other sizes"),
        ("fast_vlm", "vision.blocks.0.hook_attn_out", "the stream alone is shown"),
        ("gemma3n", "vision.blocks.0.hook_resid_post", "changes it in place"),
        ("gemma3n", "projector.hook_out", "embeds words too"),
        ("kosmos-2.5", "vision.blocks.0.attn.hook_pattern", "none of transformers' own functions"),
    ],
)
def test_what_a_tower_lacks_says_why(model_type, name, why):
    with pytest.raises(VLMLensError, match=why):
        HookedVLM(build_type(model_type)).points(name)


def test_a_projector_that_a_text_runs_only_beside_a_picture_has_points():
    assert "projector.hook_out" in HookedVLM(build_type("instructblip")).points()


def test_several_lists_of_blocks_are_refused_before_the_weights(tmp_path, monkeypatch):
    config = XLMConfig(vocab_size=60, emb_dim=32, n_layers=3, n_heads=4)
    XLMWithLMHeadModel(config).save_pretrained(tmp_path)
    monkeypatch.setattr(
        XLMWithLMHeadModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read")
    )
    with pytest.raises(VLMLensError, match="lists of modules of XLMWithLMHeadModel could be"):
        HookedVLM.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- with pictures


def test_a_vision_language_model_of_a_known_form_conforms(picture):
    vlm = new_vlm()
    assert vlm.family.takes_images
    prompt = vlm.prompt(["<image>Q:Greece\nA:", "<image>and<image>A:"], [picture] * 3)
    bench.check_conforms(vlm, prompt, cold=True)
    same = HookedVLM(tiny.build("siglip-mistral"), vlm.processor)
    same.hf_model.load_state_dict(vlm.hf_model.state_dict())
    known = same.prompt(["<image>Q:Greece\nA:", "<image>and<image>A:"], [picture] * 3)
    _, mine = vlm.run_with_cache(prompt)
    _, theirs = same.run_with_cache(known)
    assert set(theirs) - set(mine) == {"vision.hook_out"}
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    for here, there in zip(prompt.layouts, known.layouts, strict=True):
        assert [i.positions for i in here.images] == [i.positions for i in there.images]
        for mine, theirs in zip(here.images, there.images, strict=True):  # found by painting
            for space in ("text", "vision", "projector"):
                assert mine.space(space).grids == theirs.space(space).grids != ()


def test_what_is_not_known_is_told(picture):
    vlm = new_vlm()
    prompt = vlm.prompt("<image>A:", [picture])
    row = Ablate("projector.hook_out", at=Patches(0, rows=0))
    changed = vlm.run(prompt, interventions=Ablate("projector.hook_out", at=Images()))
    assert not torch.equal(changed, vlm.run(prompt))
    assert not torch.equal(changed, vlm.run(prompt, interventions=row))
    with pytest.raises(VLMLensError, match="which of the tower's layers"):
        vlm.points("vision.hook_out")


# ---------------------------------------------------------------------- the tower's last blocks


class EarlyModel(LlavaModel):
    def get_image_features(self, pixel_values, vision_feature_layer=None, **options):
        return super().get_image_features(pixel_values, vision_feature_layer=1, **options)


class EarlyVLM(NewVLM):
    """Reads the tower's first block, whatever its config says."""

    def __init__(self, config):
        super().__init__(config)
        self.model.__class__ = EarlyModel


class UndifferentiatedModel(EarlyModel):
    @torch.no_grad()
    def get_image_features(self, pixel_values, **options):
        return super().get_image_features(pixel_values, **options)


class UndifferentiatedVLM(NewVLM):
    """Likewise, by code that leaves no graph: its blocks are tried by writes."""

    def __init__(self, config):
        super().__init__(config)
        self.model.__class__ = UndifferentiatedModel


@pytest.mark.parametrize("dear", [False, True])
@pytest.mark.parametrize(
    ("model_class", "read"),
    [(NewVLM, -2), (NewVLM, -1), (EarlyVLM, -1), (UndifferentiatedVLM, -1)],
)
def test_which_block_is_read_is_proved(model_class, read, dear, monkeypatch, picture):
    """Also where a picture costs too much to record a run of it, and names tell the parts."""
    if dear:
        monkeypatch.setattr("vlm_lens.families.parts.found_tower._MOST", 0)
    made = tiny.llava_config("siglip", "mistral").to_dict() | {"vision_feature_layer": read}
    made["vision_config"]["num_hidden_layers"] = 3
    made.pop("model_type")
    model = tiny.randomize(model_class(NewConfig(**made)))
    vlm = HookedVLM(model, tiny.reader("siglip-mistral"))
    n_read = 4 + read if model_class is NewVLM else 1
    assert vlm.cfg.vision.n_layers_read == n_read
    prompt = vlm.prompt("<image>A:", [picture])
    plain = vlm.run(prompt)
    last = f"vision.blocks.{n_read - 1}.hook_resid_post"
    assert not torch.equal(vlm.run(prompt, interventions=Ablate(last, at=Images())), plain)
    if n_read < 3:
        with pytest.raises(VLMLensError, match=f"reads block {n_read - 1}, so nothing reads this"):
            vlm.run(prompt, interventions=Ablate("vision.blocks.2.hook_resid_post", at=Images()))


@pytest.mark.parametrize(
    ("model_type", "second"),
    [("deepseek_vl_hybrid", "high_res_vision_model"), ("janus", "vqmodel")],
)
def test_a_second_tower_is_declared_with_its_reason(model_type, second):
    vlm = HookedVLM(build_type(model_type))
    assert any(name.startswith("vision.blocks.1.attn") for name in vlm.points())
    told = f"model.{second} is an encoder beside the tower.*get_submodule.'model.{second}'"
    with pytest.raises(VLMLensError, match=told):
        vlm.points(f"vision.{second}.blocks.0.hook_resid_post")


def test_hooks_of_torch_reach_a_second_tower():
    """Read, written and differentiated beside the reads and writes at points."""
    vlm, prompt, _ = trial.read("deepseek_vl_hybrid")
    model = vlm.hf_model
    torch.nn.init.constant_(model.model.high_res_vision_alpha, 0.7)  # 0 in a fresh model
    block = model.get_submodule("model.high_res_vision_model.vision_encoder.layers.0")
    cut = Ablate("blocks.0.hook_attn_out", at=Last())
    plain = vlm.run(prompt, interventions=cut)
    factor = torch.ones((), requires_grad=True)
    seen = []

    def scale(module, args, output):
        seen.append(output)
        return output * factor

    hook = block.register_forward_hook(scale)
    try:
        same = vlm.run(prompt, interventions=cut, grad=True)
        (slope,) = torch.autograd.grad(same[0, -1, 7], factor)
        torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)
        assert seen[0].shape[:3] == (1, 4, 4)
        for step in (1e-2, -1e-2):
            factor.data += step
            moved, cache = vlm.run_with_cache(prompt, interventions=cut)
            factor.data -= step
            rise = (moved - plain)[0, -1, 7] / step
            torch.testing.assert_close(rise, slope, rtol=0.1, atol=1e-3)
        factor.data.zero_()
        without = vlm.run(prompt, interventions=cut)
        swept = vlm.sweep(prompt, [cut], measure=LogProb(7), progress=False).to_dataframe()
    finally:
        hook.remove()
    assert not torch.allclose(without, plain)
    assert swept["logprob"][0] == pytest.approx(float(without[0, -1].log_softmax(-1)[7]), abs=1e-5)
    assert torch.equal(vlm.run(prompt, interventions=cut), plain)
