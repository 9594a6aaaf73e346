"""Task vectors: reading, algebra, files, and where they may be used."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vlm_lens import (
    Ablate,
    ActivationPatch,
    Find,
    HookedVLM,
    Images,
    Last,
    RawPrompt,
    Steer,
    TaskVector,
    VectorEnsemble,
)
from vlm_lens.errors import InterventionError, PositionError, VectorError
from vlm_lens.reading.mean import Mean

TEXTS = [
    "Q:Greece\nA:Athens\n\nQ:Peru\nA:",
    "Q:France\nA:Paris\n\nQ:Japan\nA:",
    "Q:Peru\nA:Lima\n\nQ:\nA:",
]
P = "blocks.0.hook_resid_post"


def by_hand(vlm, prompts, at, kind="hook_resid_post"):
    """Each prompt alone, with plain hooks."""
    rows = []
    for text in prompts:
        prompt = vlm.as_prompt(text)
        names = [f"blocks.{i}.{kind}" for i in range(vlm.cfg.n_layers)]
        seen = tiny.plain_read(vlm.hf_model, prompt.inputs, names)
        ((_, position),) = at.resolve(prompt.layout)
        rows.append(torch.stack([seen[n][0, position] for n in names]))
    return torch.stack(rows)


@pytest.mark.parametrize("at", [Last(), Find(":", -3), Find("Q:", -1)])
def test_mean_over_prompts_is_one_at_a_time(model, at):
    expected = by_hand(model, TEXTS, at)
    for size in (1, 2, 16):
        vector = TaskVector.read(model, TEXTS, at=at, batch_size=size)
        torch.testing.assert_close(vector.values, expected.mean(0), rtol=1e-4, atol=1e-5)
    prompts = [model.prompt(t) for t in TEXTS]
    same = TaskVector.read(model, prompts, at=at)
    torch.testing.assert_close(same.values, expected.mean(0), rtol=1e-6, atol=1e-6)
    assert same.prompts == tuple(TEXTS)
    raws = TaskVector.read(model, [RawPrompt(t) for t in TEXTS], at=at, seed=3)
    assert raws.prompts == tuple(TEXTS)
    assert raws.seed == 3


def test_with_pictures_and_heads(vlm):
    pictures = [tiny.noise_picture(i) for i in range(4)]
    two = "Q:<image>\nA:red\n\nQ:<image>\nA:"
    raws = [RawPrompt(two, pictures[i : i + 2]) for i in range(3)] + [RawPrompt("Q:Peru\nA:")]
    expected = by_hand(vlm, raws, Last(), "attn.hook_z").unflatten(-1, (4, 8))
    vector = TaskVector.read(vlm, raws, at=Last(), points="blocks.*.attn.hook_z", batch_size=3)
    assert vector.kind == "attn.z"
    assert vector.values.shape == (2, 4, 8)
    torch.testing.assert_close(vector.values, expected.mean(0), rtol=1e-4, atol=1e-5)
    prompt = vlm.prompt("Q:Greece\nA:")
    _, cache = vlm.run_with_cache(
        prompt,
        interventions=ActivationPatch("blocks.1.attn.hook_z", at=Last(), value=vector, heads=2),
    )
    _, plain = vlm.run_with_cache(prompt)
    assert torch.equal(cache["z", 1][0, -1, 2], vector.values[1, 2])
    assert torch.equal(cache["z", 1][0, -1, [0, 1, 3]], plain["z", 1][0, -1, [0, 1, 3]])


@pytest.fixture
def vectors(clip):
    return [TaskVector.read(clip, [t], at=Last()) for t in TEXTS]


def test_algebra(vectors):
    a, b, c = vectors
    assert torch.equal((a + b).values, a.values + b.values)
    assert torch.equal((a - b).values, a.values - b.values)
    assert torch.equal((2 * a).values, 2 * a.values)
    assert torch.equal((a * 0.5).values, (a / 2).values)
    assert torch.equal((-a).values, -a.values)
    mean = TaskVector.mean(vectors)
    torch.testing.assert_close(mean.values, (a.values + b.values + c.values) / 3)
    assert mean.prompts == tuple(TEXTS)
    assert "3" in mean.note
    assert torch.equal(a.norm(), a.values.norm(dim=-1))
    torch.testing.assert_close(a.cosine(a), torch.ones(2))
    expected = (a.values * b.values).sum(-1) / (a.values.norm(dim=-1) * b.values.norm(dim=-1))
    torch.testing.assert_close(a.cosine(b), expected)
    torch.testing.assert_close(a.cosine(-a), -torch.ones(2))
    assert torch.equal(a.layer(1), a.values[1])
    assert torch.equal(a.layer(-1), a.values[-1])
    with pytest.raises(VectorError, match=r"layers 0\.\.1, not 2"):
        a.layer(2)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(VectorError, match="at least one"):
        TaskVector.mean([])


def test_ensembles(vectors):
    a, b, c = vectors
    torch.testing.assert_close(VectorEnsemble([a, b]).values, (a.values + b.values) / 2)
    weighted = VectorEnsemble([a, b], weights=[2, -1])
    torch.testing.assert_close(weighted.values, 2 * a.values - b.values)
    nested = VectorEnsemble([VectorEnsemble([a, b]), c])
    torch.testing.assert_close(nested.values, (a.values + b.values) / 4 + c.values / 2)
    assert VectorEnsemble([a, b]) == VectorEnsemble((a, b))
    assert hash(VectorEnsemble([a, b])) == hash(VectorEnsemble((a, b)))
    with pytest.raises(VectorError, match="need as many weights"):
        VectorEnsemble([a, b], weights=[1])
    with pytest.raises(VectorError, match="at least one"):
        VectorEnsemble([])


def test_files(vectors, tmp_path, clip, picture):
    vector = vectors[0] - vectors[1]
    path = vector.save(tmp_path / "a.layer3")
    assert path.name == "a.layer3.safetensors"
    for name in (path, tmp_path / "a.layer3", str(path)):
        back = TaskVector.load(name)
        assert back == vector
        assert (back.source, back.at, back.prompts, back.note) == (
            clip.facts, Last(), (TEXTS[0], TEXTS[1]), vector.note,
        )  # fmt: skip
    with safe_open(path, "pt") as file:
        assert "TaskVector" in file.metadata()["format"]
    with pytest.raises(VectorError, match="There is no file"):
        TaskVector.load(tmp_path / "nothing")
    picture.save(tmp_path / "a.png")
    with pytest.raises(VectorError, match="not a safetensors file"):
        TaskVector.load(tmp_path / "a.png")
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(VectorError, match="not a task vector"):
        TaskVector.load(tmp_path / "b")


def test_where_it_may_be_used(load, vectors, no_forward):
    clip, vector = load("clip-llama"), vectors[0]
    prompt = clip.prompt("Q:Peru\nA:")
    _, cache = clip.run_with_cache(
        prompt, interventions=ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)
    )
    for layer in range(2):
        assert torch.equal(cache["resid_post", layer][0, -1], vector.values[layer])
    other = HookedVLM(tiny.build("clip-llama", seed=9), tiny.reader("clip-llama"))
    narrow = HookedVLM(
        tiny.build("clip-llama", decoder={"hidden_size": 16, "num_attention_heads": 2}),
        tiny.reader("clip-llama"),
    )
    lower = HookedVLM(
        tiny.build("clip-llama", decoder={"num_hidden_layers": 3}), tiny.reader("clip-llama")
    )
    for vlm in (clip, other, narrow, lower):
        no_forward(vlm)
    for vlm, point, message in [
        (clip, "blocks.0.hook_mlp_out", "read at resid_post, not at mlp_out"),
        (clip, "hook_merged", "read at resid_post, not at merged"),
        (other, P, "allow_transfer=True"),
        (narrow, P, "width 32 .* has width 16"),
        (lower, "blocks.2.hook_resid_post", "2 layers; there is none"),
    ]:
        for make in (ActivationPatch, Steer):
            with pytest.raises(VectorError, match=message):
                vlm.run("Q:Peru\nA:", interventions=make(point, Last(), vector))


def test_transfer_when_it_is_meant(clip, vectors):
    other = HookedVLM(tiny.build("clip-llama", seed=9), tiny.reader("clip-llama"))
    ensemble = VectorEnsemble(vectors)
    for value in (vectors[0], ensemble):
        patch = ActivationPatch(P, at=Last(), value=value, allow_transfer=True)
        _, cache = other.run_with_cache("Q:Peru\nA:", interventions=patch)
        assert torch.equal(cache[P][0, -1], value.values[0])
        with pytest.raises(VectorError, match="allow_transfer=True"):
            other.run("Q:", interventions=ActivationPatch(P, at=Last(), value=value))
    with pytest.raises(VectorError, match="allow_transfer"):
        vectors[0] + TaskVector.read(other, TEXTS, at=Last())


def test_one_model_in_every_precision(clip, vectors):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        twin = HookedVLM(tiny.build("clip-llama").to(dtype), clip.processor)
        assert twin.facts.unembed_hash == clip.facts.unembed_hash
        twin.run("Q:Peru\nA:", interventions=ActivationPatch(P, at=Last(), value=vectors[0]))
    other = HookedVLM(tiny.build("clip-llama", seed=2))
    assert other.facts.unembed_hash != clip.facts.unembed_hash


@torch.no_grad()
def test_a_tuned_model_with_the_same_head_is_another_model(clip, vectors):
    """Of one name, too; in other precisions it is still told apart."""
    tuned = HookedVLM(tiny.build("clip-llama"), clip.processor)
    tuned.__dict__["name"] = clip.name
    patch = ActivationPatch(P, at=Last(), value=vectors[0])
    mean = Mean.of(clip, TEXTS, P)
    _, cache = clip.run_with_cache("Q:Peru\nA:")
    edits = [patch, Ablate(P, Last(), by=mean), ActivationPatch(P, at=Last(), value=cache)]
    for edit in edits:
        tuned.run("Q:Peru\nA:", interventions=edit)  # the same weights
    tuned.hf_model.model.language_model.layers[0].mlp.down_proj.weight[0].neg_()
    assert tuned.facts.unembed_hash == clip.facts.unembed_hash
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        tuned.hf_model.to(dtype)
        for edit in edits:
            with pytest.raises(VectorError, match="other weights behind.*allow_transfer=True"):
                tuned.run("Q:Peru\nA:", interventions=edit)
    tuned.run("Q:", interventions=ActivationPatch(P, Last(), vectors[0], allow_transfer=True))
    tuned.run("Q:", interventions=ActivationPatch(P, Last(), vectors[0].values[0]))  # a tensor


def test_an_adapter_switched_off_is_another_model(clip):
    vlm = HookedVLM(tiny.build("clip-llama"), clip.processor)
    layer = vlm.hf_model.model.language_model.layers[1].mlp
    layer._disable_adapters, layer.scaling = False, {"default": 2.0}  # as PEFT's layers note it
    patch = ActivationPatch(P, at=Last(), value=TaskVector.read(vlm, TEXTS, at=Last()))
    vlm.run("Q:Peru\nA:", interventions=patch)
    for name, value in (("_disable_adapters", True), ("scaling", {"default": 1.0})):
        before = getattr(layer, name)
        setattr(layer, name, value)
        with pytest.raises(VectorError, match="another adapter"):
            vlm.run("Q:Peru\nA:", interventions=patch)
        setattr(layer, name, before)
    vlm.run("Q:Peru\nA:", interventions=patch)


def test_a_cache_of_another_model_is_refused(load, no_forward):
    llama, mistral = load("llama"), load("mistral")
    _, cache = mistral.run_with_cache("Q:Peru\nA:")
    patch = ActivationPatch(P, at=Last(), value=cache)
    transfer = ActivationPatch(P, at=Last(), value=cache, allow_transfer=True)
    _, after = llama.run_with_cache("Q:Peru\nA:", interventions=transfer)
    assert torch.equal(after[P][0, -1], cache[P][0, -1])
    no_forward(llama)
    with pytest.raises(VectorError, match="This cache was read on"):
        llama.run("Q:Peru\nA:", interventions=patch)


def test_refused_when_read(clip, picture, no_forward):
    no_forward(clip)
    with pytest.raises(VectorError, match="at least one prompt"):
        TaskVector.read(clip, [], at=Last())
    with pytest.raises(VectorError, match="several kinds"):
        TaskVector.read(clip, TEXTS, at=Last(), points="blocks.*.hook_*_out")
    with pytest.raises(VectorError, match=r"selects layers \[1\]"):
        TaskVector.read(clip, TEXTS, at=Last(), points="blocks.1.hook_resid_post")
    with pytest.raises(PositionError, match="does not occur"):
        TaskVector.read(clip, TEXTS, at=Find("Spain"))


def test_one_position_is_read(clip, picture):
    raw = RawPrompt("Q:<image>", [picture])
    with pytest.raises(VectorError, match="16 positions"):
        TaskVector.read(clip, [raw], at=Images())


def test_interventions_while_reading(clip):
    steer = Steer(P, at=Last(), vector=torch.ones(32))
    plain = TaskVector.read(clip, TEXTS[:1], at=Last())
    changed = TaskVector.read(clip, TEXTS[:1], at=Last(), interventions=steer)
    torch.testing.assert_close(changed.values[0], plain.values[0] + 1)
    assert not torch.allclose(changed.values[1], plain.values[1] + 1)


def test_a_value_of_another_width(clip, no_forward):
    no_forward(clip)
    message = r"\[31\] does not fit .* it takes a number, \[32\]"
    with pytest.raises(InterventionError, match=message):
        clip.run("Q:", interventions=ActivationPatch(P, at=Last(), value=torch.ones(31)))
