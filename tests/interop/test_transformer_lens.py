"""TransformerLens: the same activations by name, models both ways, and its tools on our caches."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest
import tiny
import torch
from families import (
    texts,
    tiny_gemma3,
    tiny_idefics3,
    tiny_llava_next,
    tiny_mistral3,
    tiny_qwen3_vl,
)
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from vlm_lens import ActivationCache, HookedVLM
from vlm_lens.errors import ModelError, PointError
from vlm_lens.interop.transformer_lens import from_cache, to_bridge, to_cache
from vlm_lens.lenses import JacobianLens, LensError
from vlm_lens.prompts.prompt import Prompt

pytestmark = pytest.mark.slow  # transformer_lens takes seconds to import


class Case(NamedTuple):
    save: Callable
    compared: int  # points of this package that the bridge has too
    alone: tuple[str, ...]  # globs of those that it does not have
    load: Callable = HookedVLM.from_pretrained


# Features with the pictures in their places have no point there; scores of a tower's attention have
# one that holds the pattern; and the tower's last output is not what LLaVA's projector reads.
ALONE = ("hook_merged", "vision.blocks.?.attn.hook_attn_scores")
CASES = {
    "llava": Case(lambda folder: tiny.save("clip-llama", folder), 80, (*ALONE, "vision.hook_out")),
    "llava-siglip": Case(
        lambda folder: tiny.save("siglip-mistral", folder), 80, (*ALONE, "vision.hook_out")
    ),
    "llava-next": Case(tiny_llava_next.save, 80, (*ALONE, "vision.hook_out")),
    "idefics3": Case(tiny_idefics3.save, 67, ALONE),
    "gemma3": Case(tiny_gemma3.save, 67, ALONE),
    # its Pixtral tower is one opaque part there
    "mistral3": Case(tiny_mistral3.save, 37, ("hook_merged", "vision.*"), tiny_mistral3.load),
}
SPELLINGS = 70  # at the least, names of the bridge that are understood


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model, the bridge around a copy of it, and a prompt with a picture."""
    case = CASES[request.param]
    vlm = case.load(case.save(tmp_path_factory.mktemp(request.param)))
    prompt = vlm.prompt("a<image>b", [tiny.noise_picture(1, (40, 30))])
    return case, vlm, to_bridge(vlm), prompt


def split(prompt) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens, and the rest, as the bridge takes them."""
    inputs = dict(prompt.inputs)
    return inputs.pop("input_ids"), inputs


def read_as(name: str) -> str:
    """The point that a name of the bridge holds; a write to a norm's input is another thing."""
    for norm, stream in {".ln1.hook_in": "pre", ".ln2.hook_in": "mid"}.items():
        if name.endswith(norm):
            return f"{name.removesuffix(norm)}.hook_resid_{stream}"
    return name


def is_other(name: str) -> bool:
    """Whether a name of the bridge means another thing there than here."""
    if name.startswith("vision") and name.endswith(".hook_attn_scores"):
        return True
    return name.endswith(".hook_normalized")  # there before the norm's weight and bias


def test_every_shared_point_has_the_same_value(pair):
    case, vlm, bridge, prompt = pair
    table = vlm.points()
    logits, ours = vlm.run_with_cache(prompt, names_filter=list(table))
    tokens, rest = split(prompt)
    with torch.no_grad():
        output, theirs = bridge.run_with_cache(tokens, **rest)
    torch.testing.assert_close(logits, getattr(output, "logits", output), atol=1e-4, rtol=1e-4)

    compared: dict[str, str] = {}
    for name in theirs:
        stands_for = read_as(name)
        if stands_for not in table or is_other(name):
            continue
        point = table[stands_for].name
        # there without an axis of pictures where the model has none
        value = ours[point] if ours[point].dim() == theirs[name].dim() else ours[point][0]
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4, msg=name)
        compared[name] = point
    shared = set(compared.values())
    assert len(shared) == case.compared and len(compared) >= SPELLINGS
    for point in table:
        alone = any(fnmatchcase(point, glob) for glob in case.alone)
        assert alone != (point in shared), point


def test_norms_are_called_otherwise(pair):
    case, vlm, bridge, prompt = pair
    tokens, rest = split(prompt)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(tokens, **rest)
    _, ours = vlm.run_with_cache(prompt, names_filter="blocks.1.ln?.hook_normalized")
    for name, value in ours.items():
        assert not torch.allclose(value, theirs[name], atol=1e-3)
        after = theirs[name.replace("hook_normalized", "hook_out")]
        torch.testing.assert_close(value, after, atol=1e-4, rtol=1e-4)


WRITTEN = (
    "blocks.0.hook_in", "blocks.0.hook_out", "blocks.0.ln1.hook_out", "blocks.0.ln2.hook_out",
    "blocks.0.attn.hook_in", "blocks.0.attn.hook_out", "blocks.0.attn.o.hook_in",
    "blocks.0.attn.o.hook_out", "blocks.0.attn.q.hook_out", "blocks.0.attn.k.hook_out",
    "blocks.0.attn.v.hook_out", "blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_in",
    "blocks.0.mlp.hook_out", "blocks.0.mlp.gate.hook_out", "blocks.0.mlp.in.hook_out",
    "blocks.0.mlp.out.hook_in", "blocks.0.mlp.out.hook_out", "ln_final.hook_out",
    "unembed.hook_in", "embed.hook_out", "vision_encoder.embeddings.hook_out",
    "vision_encoder.pre_layernorm.hook_out", "vision_encoder.encoder_layers.0.hook_out",
    "vision_encoder.encoder_layers.0.mlp.in.hook_out", "vision_projector.hook_in",
    "vision_projector.hook_out",
)  # fmt: skip


def test_a_write_to_a_name_does_what_it_does_there(load, picture):
    vlm = load("clip-llama")
    bridge = to_bridge(vlm)
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    tokens, rest = split(prompt)
    plain = vlm.run(prompt)
    for name in WRITTEN:
        hooks = [(name, lambda x, hook: 0.5 * x + 0.1 * x.flip(-1))]
        with torch.no_grad():
            output = bridge.run_with_hooks(tokens, fwd_hooks=hooks, **rest)
        ours = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
        assert (ours - plain).abs().max() > 0.01, name
        theirs = getattr(output, "logits", output)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=name)
    # Not among them: `hook_resid_mid`, which there is the second norm's input alone, so that a
    # write to it never reaches the stream that the MLP's output is added to.


@pytest.mark.parametrize("forwards_before", [0, 1])
def test_a_write_to_the_layer_that_the_projector_reads_acts(load, picture, forwards_before):
    vlm = load("clip-llama")
    layer = vlm.cfg.vision.n_layers_read - 1
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    twin = copy.deepcopy(vlm.hf_model)
    fresh = HookedVLM(twin, vlm.processor)
    for _ in range(forwards_before):  # transformers puts its own hooks on at the first
        fresh.run(prompt)
    there = f"vision_encoder.encoder_layers.{layer}.hook_out"
    here = f"vision.blocks.{layer}.hook_resid_post"
    expected = tiny.plain_write(copy.deepcopy(vlm.hf_model), prompt.inputs, here, torch.zeros_like)
    for name in (there, here):
        changed = fresh.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x * 0)])
        assert (changed - plain).abs().max() > 0.1
        assert torch.equal(changed, expected)
    # With transformer-lens 4.3 and transformers 5 the bridge's own write at `there` leaves the
    # logits as they are: transformers takes the hidden state before the bridge's hook is called.


# ------------------------------------------------------------------ models and caches, both ways


@pytest.fixture(scope="module")
def both(load):
    """A LLaVA, its bridge, and a prompt with a picture."""
    vlm = load("clip-llama")
    return vlm, to_bridge(vlm), vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(1, (40, 30))])


@pytest.fixture(params=["clip-llama", "siglip-mistral", "gpt2"])
def either(request, load):
    """Models with pictures and one without, with a prompt."""
    if request.param != "gpt2":
        vlm = load(request.param)
        return vlm, vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(1, (40, 30))])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name:  # 1 and 0 as they are made
                weight.add_(0.3 * torch.randn_like(weight))
    vlm = HookedVLM(model, load("llama").processor)
    return vlm, vlm.prompt("a b c d")


def test_a_bridge_leaves_the_model_as_it_was(load, picture):
    vlm = load("siglip-mistral")
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    before = vlm.hf_model.state_dict()
    logits, attention = vlm.run(prompt), vlm.hf_model.config._attn_implementation
    hooks, values = tiny.hook_state(vlm.hf_model), copy.deepcopy(before)
    bridge = to_bridge(vlm)
    to_cache(vlm.run_with_cache(prompt)[1], vlm, bridge).decompose_resid(apply_ln=True)
    back = HookedVLM.from_bridge(bridge, vlm.processor)
    assert torch.equal(back.run(prompt), logits)
    after = vlm.hf_model.state_dict()
    assert list(after) == list(before) and tiny.hook_state(vlm.hf_model) == hooks
    assert all(torch.equal(after[name], values[name]) for name in before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert vlm.hf_model.config._attn_implementation == attention
    assert torch.equal(vlm.run(prompt), logits)
    tokens, rest = split(prompt)
    with torch.no_grad():
        theirs = bridge(tokens, **rest)
    torch.testing.assert_close(getattr(theirs, "logits", theirs), logits, atol=1e-4, rtol=1e-4)


def test_a_model_made_of_a_bridge_computes_what_the_first_one_does(either):
    vlm, prompt = either
    bridge = to_bridge(vlm)
    wrapped = list(bridge.original_model.state_dict())
    back = HookedVLM.from_bridge(bridge, vlm.processor)
    assert list(bridge.original_model.state_dict()) == wrapped
    assert torch.equal(back.run(prompt), vlm.run(prompt))
    assert list(back.hf_model.state_dict()) == list(vlm.hf_model.state_dict())
    # a copy: a change of one reaches neither of the others
    with torch.no_grad():
        next(back.hf_model.parameters()).add_(1)
    changed = next(back.hf_model.parameters())
    assert not torch.equal(next(vlm.hf_model.parameters()), changed)
    assert not torch.equal(next(bridge.original_model.parameters()), changed)


def test_processed_weights_are_refused(load):
    bridge = to_bridge(load("llama"))
    bridge.enable_compatibility_mode()
    with pytest.raises(ModelError, match="processed"):
        HookedVLM.from_bridge(bridge)


def test_a_class_without_an_adapter_is_named(tmp_path):
    vlm = HookedVLM.from_pretrained("toy-fuyu")
    with pytest.raises(ModelError, match="no bridge for FuyuForCausalLM"):
        to_bridge(vlm)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_a_mixture_of_experts_has_the_same_values_by_name(name, tmp_path):
    made = texts.build(name)
    made.config.vocab_size = 320  # as many as the tokenizer has
    model = tiny.randomize(type(made)(made.config)).eval()
    with pytest.raises(ModelError, match="made in memory"):
        to_bridge(HookedVLM(model, tiny.tokenizer("pieces")))
    model.save_pretrained(tmp_path)
    tiny.tokenizer("pieces").save_pretrained(tmp_path)
    vlm = HookedVLM.from_pretrained(tmp_path)
    shared, table = _shared(vlm, vlm.prompt("Q:Greece A:")), vlm.points()
    alone = {"hook_merged", *table.select("blocks.*.mlp.hook_router_logits")}
    assert shared == set(table) - alone and len(shared) == 29


def _shared(vlm: HookedVLM, prompt: Prompt) -> set[str]:
    """The points that the bridge has too, with the same values."""
    table, bridge = vlm.points(), to_bridge(vlm)
    _, ours = vlm.run_with_cache(prompt, names_filter=list(table))
    tokens, rest = split(prompt)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(tokens, **rest)
    shared = set()
    for there in theirs:
        stands_for = read_as(there)
        if stands_for in table and not is_other(there):
            point = table[stands_for].name
            torch.testing.assert_close(ours[point], theirs[there], atol=1e-4, rtol=1e-4, msg=there)
            shared.add(point)
    return shared


def test_qwen3_vl_has_the_same_values_by_name(tmp_path, without_torchvision):
    vlm = HookedVLM.from_pretrained(tiny_qwen3_vl.save(tmp_path))
    prompt = vlm.prompt("Q:<image>A:", [tiny.noise_picture(1, (64, 64))])
    bridge, table = to_bridge(vlm), vlm.points()
    tokens, rest = split(prompt)
    with torch.no_grad():
        logits, theirs = bridge.run_with_cache(tokens, **rest)
    _, own = vlm.run_with_cache(prompt, names_filter=list(table))
    cache = from_cache(theirs, vlm, prompt)
    for name in cache:
        torch.testing.assert_close(cache[name], own[name], atol=1e-4, rtol=1e-4, msg=name)
    logits = getattr(logits, "logits", logits)
    torch.testing.assert_close(logits, vlm.run(prompt), atol=1e-4, rtol=1e-4)
    # what is within a block of its tower is one opaque part there, as is DeepStack
    language = {n for n in table if not n.startswith(("vision.", "projector."))}
    within = set(table.select("vision.blocks.*.*.hook_*")) | {"vision.hook_out"}
    norms = set(table.select("vision.blocks.*.ln?.hook_normalized"))
    assert set(cache) & language == language - {
        "hook_merged",
        *table.select("blocks.*.attn.hook_attn_scores"),
    }
    assert within - norms <= set(table) - set(cache) and len(cache) == 53


@pytest.fixture
def without_torchvision(monkeypatch):
    """Qwen3-VL's bridge where torchvision is not installed: asked for, it is not used."""
    from transformer_lens.model_bridge.supported_architectures import qwen3_vl

    if importlib.util.find_spec("torchvision") is None:
        monkeypatch.setattr(qwen3_vl.Qwen3VLArchitectureAdapter, "required_libraries", [])


def test_why_there_is_no_bridge_is_what_transformer_lens_says(tmp_path):
    if importlib.util.find_spec("torchvision"):
        pytest.skip("with torchvision the bridge is built")
    vlm = HookedVLM.from_pretrained(tiny_qwen3_vl.save(tmp_path))
    message = "no bridge for Qwen3VLForConditionalGeneration: .*needs the optional torchvision"
    with pytest.raises(ModelError, match=message) as told:
        to_bridge(vlm)
    assert "Did you mean" not in str(told.value)


def test_its_lens_reads_our_cache(both):
    from transformer_lens.tools.analysis import logit_lens

    vlm, bridge, prompt = both
    _, cache = vlm.run_with_cache(prompt)
    theirs = logit_lens(
        bridge, cache=to_cache(cache, vlm, bridge), positions=None, return_type="probs"
    )
    for layer in range(vlm.cfg.n_layers):
        stream = cache["resid_post", layer]
        model = vlm.hf_model
        with torch.no_grad():
            ours = model.lm_head(model.model.language_model.norm(stream)).softmax(-1)
        torch.testing.assert_close(theirs.values[layer + 1], ours, atol=1e-5, rtol=1e-4)


def test_parts_sum_to_the_stream_and_to_the_logits_at_pictures_too(either):
    vlm, prompt = either
    bridge = to_bridge(vlm)
    logits, cache = vlm.run_with_cache(prompt)
    theirs = to_cache(cache, vlm, bridge)
    parts, labels = theirs.decompose_resid(return_labels=True)
    assert labels[0] == "embed" and len(labels) == len(parts)
    stream = cache["resid_post", vlm.cfg.n_layers - 1]
    torch.testing.assert_close(parts.sum(0), stream, atol=1e-4, rtol=1e-4)
    heads, names = theirs.stack_head_results(return_labels=True, incl_remainder=True)
    assert len(names) == vlm.cfg.n_layers * vlm.cfg.n_heads + 1
    torch.testing.assert_close(heads.sum(0), stream, atol=1e-4, rtol=1e-4)
    for token in (7, 20):
        attributed = theirs.logit_attrs(parts, token).sum(0)
        constant = _logit_of_the_norms_bias(vlm, token)
        torch.testing.assert_close(attributed + constant, logits[..., token], atol=1e-3, rtol=1e-3)


def _logit_of_the_norms_bias(vlm: HookedVLM, token: int) -> Tensor:
    """What the final norm's bias, which is no component's, gives a token."""
    names = dict(vlm.hf_model.named_parameters())
    bias = next((p for n, p in names.items() if n.endswith(("ln_f.bias", "final_norm.bias"))), None)
    if bias is None:
        return torch.zeros(())
    return (bias @ vlm.hf_model.get_output_embeddings().weight[token]).detach()


def test_what_it_leaves_out_is_refused(tmp_path, without_torchvision):
    vlm = HookedVLM.from_pretrained(tiny_qwen3_vl.save(tmp_path))
    prompt = vlm.prompt("a<image>b", [tiny.noise_picture(1, (64, 64))])
    _, cache = vlm.run_with_cache(prompt)
    theirs = to_cache(cache, vlm, to_bridge(vlm))
    with pytest.raises(PointError, match="DeepStack"):
        theirs.decompose_resid()


def test_its_cache_becomes_ours(both):
    vlm, bridge, prompt = both
    tokens, rest = split(prompt)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(tokens, **rest)
    cache = from_cache(theirs, vlm, prompt)
    _, own = vlm.run_with_cache(prompt, names_filter=list(cache))
    assert len(cache) == 80
    for name in cache:
        torch.testing.assert_close(cache[name], own[name], atol=1e-4, rtol=1e-4, msg=name)
    assert cache.select("blocks.1.hook_resid_post", -1).shape == (1, 1, vlm.cfg.d_model)
    other = vlm.prompt("one more token<image>\nA:", [tiny.noise_picture(1, (40, 30))])
    with pytest.raises(PointError, match="positions"):
        from_cache(theirs, vlm, other)


def test_caches_that_cannot_be_handed_over_are_refused(both):
    vlm, bridge, prompt = both
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.*.hook_resid_post", positions=-1)
    with pytest.raises(PointError, match="kept the activations at"):
        to_cache(cache, vlm, bridge)
    empty = ActivationCache({}, vlm.points(), prompt.layouts)
    with pytest.raises(PointError, match="nothing"):
        to_cache(empty, vlm, bridge)


def test_its_jacobian_lens_is_read(both, tmp_path):
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as TheirLens

    vlm, bridge, prompt = both
    seed = torch.Generator().manual_seed(0)
    width, last = vlm.cfg.d_model, vlm.cfg.n_layers - 1
    maps = {n: torch.randn(width, width, generator=seed) for n in range(last)}
    theirs = TheirLens(maps, n_prompts=3, d_model=width)
    theirs.save(tmp_path / "lens.pt", dtype=torch.float32)
    ours = JacobianLens.from_published(tmp_path / "lens.pt", vlm)
    _, cache = vlm.run_with_cache(prompt)
    read = ours.run(vlm, prompt)
    model = vlm.hf_model
    for layer in range(last):
        with torch.no_grad():
            moved = theirs.transport(cache["resid_post", layer][0], layer)
            expected = model.lm_head(model.model.language_model.norm(moved)).argmax(-1)
        assert torch.equal(read.rows[0].top_ids[layer, :, 0], expected)
    sums = {"jacobian_sum": {n: 5 * m for n, m in maps.items()}, "n_done": 5}
    torch.save(sums, tmp_path / "fit.pt")
    again = JacobianLens.from_published(tmp_path / "fit.pt", vlm)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(again.weights[name].data, weight.data)
    torch.save({"J": {0: torch.zeros(3, 3)}}, tmp_path / "other.pt")
    for name, why in (("other.pt", "of width"), ("none.pt", "cannot be read")):
        with pytest.raises(LensError, match=why):
            JacobianLens.from_published(tmp_path / name, vlm)
    torch.save({"a": 1}, tmp_path / "else.pt")
    with pytest.raises(LensError, match="no Jacobian lens"):
        JacobianLens.from_published(tmp_path / "else.pt", vlm)


def test_what_its_logit_attribution_would_get_wrong_is_right_from_our_cache(both):
    """It refuses a bridge whose weights are as the checkpoint has them; the cache does the same."""
    from transformer_lens.tools.analysis import direct_logit_attribution

    vlm, bridge, prompt = both
    logits, cache = vlm.run_with_cache(prompt)
    theirs = to_cache(cache, vlm, bridge)
    with pytest.raises(ValueError, match="compatibility"):
        direct_logit_attribution(bridge, answer_tokens=7, cache=theirs)
    parts = theirs.decompose_resid(pos_slice=-1)
    difference = theirs.logit_attrs(parts, 7, incorrect_tokens=20, pos_slice=-1).sum(0)
    torch.testing.assert_close(
        difference.flatten(), (logits[:, -1, 7] - logits[:, -1, 20]), atol=1e-3, rtol=1e-3
    )
