"""Models loaded as large ones are: in bfloat16, on several devices, offloaded, quantised."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import transformers
from families import tiny_internvl

from vlm_lens import (
    ActivationPatch,
    At,
    HookedVLM,
    Images,
    Last,
    LogitLens,
    TaskVector,
)
from vlm_lens.prompts.inputs import input_device

TEXT = "model.language_model"
MAPS = {
    "cpu": {"": "cpu"},
    "partly-disk": {
        "model.vision_tower": "disk",
        "model.multi_modal_projector": "cpu",
        f"{TEXT}.embed_tokens": "cpu",
        f"{TEXT}.rotary_emb": "cpu",
        f"{TEXT}.layers.0": "cpu",
        f"{TEXT}.layers.1": "disk",
        f"{TEXT}.norm": "disk",
        "lm_head": "disk",
    },
    "embedding-on-disk": {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "disk",
        TEXT: "disk",
        "lm_head": "cpu",
    },
    "all-on-disk": {"": "disk"},
}
HASHED = ("cpu", "embedding-on-disk")  # those whose unembedding can be read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("clip-llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(folder):
    return HookedVLM.from_pretrained(folder)


@pytest.fixture(scope="module", params=MAPS)
def spread(request, folder, tmp_path_factory):
    """The model with a device map; `spread.where` says which."""
    vlm = HookedVLM.from_pretrained(
        folder,
        device_map=MAPS[request.param],
        offload_folder=tmp_path_factory.mktemp(request.param),
    )
    vlm.where = request.param
    return vlm


@pytest.fixture
def prompts(spread, plain, picture):
    return [vlm.prompt("Q:<image>\nA:", [picture]) for vlm in (spread, plain)]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.device.type == "cpu"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_weights_are_where_they_should_be(spread):
    devices = {weight.device.type for weight in spread.hf_model.parameters()}
    assert ("meta" in devices) == (spread.where != "cpu")
    assert ("cpu" in devices) == (spread.where != "all-on-disk")


def test_what_it_says_of_itself(spread, plain):
    assert spread.device == torch.device("cpu") and spread.dtype == torch.float32
    assert "on cpu" in repr(spread)
    assert list(spread.points()) == list(plain.points())
    hashed = spread.facts.unembed_hash
    assert hashed == (plain.facts.unembed_hash if spread.where in HASHED else None)


def test_runs(spread, plain, prompts):
    ours, theirs = prompts
    close(spread.run(ours), plain.run(theirs))
    logits, cache = spread.run_with_cache(ours, names_filter="*")
    expected_logits, expected = plain.run_with_cache(theirs, names_filter="*")
    close(logits, expected_logits)
    assert list(cache) == list(expected) == list(plain.points())
    for name, value in expected.items():
        close(cache[name], value)
    tokens = [v.generate(p, max_new_tokens=3).tokens for v, p in ((spread, ours), (plain, theirs))]
    assert torch.equal(*tokens)


def test_norm_unembedding_and_lens(spread, plain, prompts):
    x = torch.randn(1, 3, plain.cfg.d_model, generator=torch.Generator().manual_seed(0))
    close(spread.ln_final(x), plain.ln_final(x))
    close(spread.unembed(x), plain.unembed(x))
    ours, theirs = (
        LogitLens(at=Last()).run(v, p) for v, p in zip((spread, plain), prompts, strict=True)
    )
    assert (
        ours.to_dataframe()
        .select_dtypes("object")
        .equals(theirs.to_dataframe().select_dtypes("object"))
    )


@pytest.mark.parametrize(
    ("point", "at"),
    [
        ("blocks.0.hook_resid_post", Last()),
        ("blocks.1.hook_resid_mid", At(2)),
        ("blocks.1.mlp.hook_post", Last()),
        ("projector.hook_out", Images()),
        ("vision.blocks.1.hook_resid_post", Images()),
        ("vision.blocks.0.hook_resid_mid", Images()),
    ],
)
def test_patches(spread, plain, prompts, point, at):
    width = plain.points()[point].sizes[-1]
    patch = ActivationPatch(point, at=at, value=torch.ones(width))
    ours, theirs = prompts
    changed = spread.run(ours, interventions=patch)
    close(changed, plain.run(theirs, interventions=patch))
    assert not torch.allclose(changed, spread.run(ours))


@pytest.mark.parametrize("engine", ["replay", "full"])
def test_sweeps(spread, plain, prompts, engine):
    variants = [
        ActivationPatch(f"blocks.{layer}.hook_resid_post", at=at, value=torch.ones(32))
        for layer in range(2)
        for at in (Last(), At(2))
    ]
    ours, theirs = (
        v.sweep(p, variants, measure="logits", engine=engine, progress=False)
        for v, p in zip((spread, plain), prompts, strict=True)
    )
    assert ours.engines == theirs.engines == {engine: 4}
    close(ours.stack("logits"), theirs.stack("logits"))


def test_a_vector_goes_from_one_to_the_other(spread, plain):
    ours, theirs = (TaskVector.read(v, ["Q:Peru\nA:"], at=Last()) for v in (spread, plain))
    close(ours.values, theirs.values)
    patches = [  # known to be the same model by its name where a hash cannot be had
        ActivationPatch("blocks.0.hook_resid_post", at=Last(), value=v) for v in (ours, theirs)
    ]
    results = [plain.run("Q:Japan\nA:", interventions=p) for p in patches]
    results += [spread.run("Q:Japan\nA:", interventions=p) for p in patches]
    for result in results[1:]:
        close(result, results[0])


def test_nothing_is_left_on_it(spread, prompts):
    before = tiny.hook_state(spread.hf_model)
    keys = list(spread.hf_model.state_dict())
    fetching = {
        n: id(m._hf_hook) for n, m in spread.hf_model.named_modules() if hasattr(m, "_hf_hook")
    }
    spread.run_with_cache(prompts[0], names_filter="*")
    assert list(spread.hf_model.state_dict()) == keys
    after = {
        n: id(m._hf_hook) for n, m in spread.hf_model.named_modules() if hasattr(m, "_hf_hook")
    }
    assert after == fetching
    for name, counts in tiny.hook_state(spread.hf_model).items():
        assert counts >= before[name], name


def test_bfloat16(folder, plain, picture):
    vlm = HookedVLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert vlm.dtype == torch.bfloat16
    assert vlm.facts.unembed_hash == plain.facts.unembed_hash
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    logits, cache = vlm.run_with_cache(prompt)
    assert {value.dtype for value in cache.values()} == {torch.bfloat16}
    fresh = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(logits, tiny.plain_logits(fresh.eval(), prompt.inputs))
    read = plain.run_with_cache(plain.prompt("Q:<image>\nA:", [picture]))[1]
    patch = ActivationPatch(
        "blocks.0.hook_resid_post", at=Last(), value=read["resid_post", 0][0, 1]
    )
    assert vlm.run(prompt, interventions=patch).dtype == torch.bfloat16
    result = vlm.sweep(prompt, [patch], measure="logits", progress=False)
    assert torch.isfinite(result.stack("logits")).all()
    LogitLens().run(vlm, prompt)


def test_the_device_of_an_accelerator_that_fetches(plain):
    class Fetching:
        execution_device = "cuda:1"

    model = copy.deepcopy(plain.hf_model)
    assert input_device(model) == torch.device("cpu")
    embedding = model.get_input_embeddings().to("meta")
    embedding._hf_hook = Fetching()
    assert input_device(model) == torch.device("cuda:1")


def test_quantisation_is_passed_on(folder, monkeypatch):
    seen = {}
    loader = transformers.AutoModelForImageTextToText
    own = loader.from_pretrained

    def from_pretrained(name, **options):
        seen.update(options)
        options.pop("quantization_config")
        return own(name, **options)

    monkeypatch.setattr(loader, "from_pretrained", from_pretrained)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    vlm = HookedVLM.from_pretrained(folder, quantization_config=config, dtype=torch.float16)
    asked = {"quantization_config": config, "dtype": torch.float16}
    assert seen == asked | {"trust_remote_code": False}
    assert vlm.dtype == torch.float16


def test_a_block_whose_own_weights_are_offloaded(tmp_path):
    folder = tiny_internvl.save(tmp_path / "model")
    plain = HookedVLM.from_pretrained(folder)
    spread = HookedVLM.from_pretrained(
        folder, device_map={"": "disk"}, offload_folder=tmp_path / "disk"
    )
    text, pictures = "Q:<image>A:", [tiny.noise_picture(0, (20, 20))]
    logits, cache = spread.run_with_cache(text, pictures, names_filter="*")
    expected_logits, expected = plain.run_with_cache(text, pictures, names_filter="*")
    close(logits, expected_logits)
    for name, value in expected.items():
        close(cache[name], value)
    for name in ("hook_attn_out", "hook_resid_mid", "hook_mlp_out"):
        point = f"vision.blocks.0.{name}"
        hooks = [(point, lambda x, hook: x.flip(-1))]
        ours, theirs = (v.run_with_hooks(text, pictures, fwd_hooks=hooks) for v in (spread, plain))
        close(ours, theirs)
        assert not torch.allclose(ours, logits)
