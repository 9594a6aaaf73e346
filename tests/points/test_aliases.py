"""The names that users of TransformerLens type."""

from __future__ import annotations

import pytest
import tiny
import torch
from families import tiny_gemma3

from vlm_lens import ActivationPatch, HookedVLM, Last
from vlm_lens.errors import PointError
from vlm_lens.points import aliases

SAME = {
    "blocks.1.hook_out": "blocks.1.hook_resid_post",
    "blocks.1.hook_in": "blocks.1.hook_resid_pre",
    "blocks.1.attn.hook_out": "blocks.1.hook_attn_out",
    "blocks.1.attn.o.hook_in": "blocks.1.attn.hook_z",
    "blocks.1.mlp.hook_out": "blocks.1.hook_mlp_out",
    "blocks.1.ln1.hook_out": "blocks.1.ln1.hook_normalized",
    "blocks.1.mlp.gate.hook_out": "blocks.1.mlp.hook_pre",
    "blocks.1.mlp.in.hook_out": "blocks.1.mlp.hook_pre_linear",
    "ln_final.hook_out": "ln_final.hook_normalized",
    "embed.hook_out": "hook_embed",
    "unembed.hook_out": "hook_logits",
    "vision_encoder.encoder_layers.2.hook_out": "vision.blocks.2.hook_resid_post",
    "vision_encoder.encoder_layers.2.hook_resid_mid": "vision.blocks.2.hook_resid_mid",
    "vision_encoder.encoder_layers.0.attn.hook_pattern": "vision.blocks.0.attn.hook_pattern",
    "vision_encoder.encoder_layers.0.mlp.in.hook_out": "vision.blocks.0.mlp.hook_pre",
    "vision_encoder.embeddings.hook_out": "vision.hook_embed",
    "vision_projector.hook_in": "projector.hook_in",
    "vision_projector.hook_out": "projector.hook_out",
}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return HookedVLM.from_pretrained(tiny_gemma3.save(tmp_path_factory.mktemp("gemma3")))


@pytest.mark.parametrize("there", SAME)
def test_a_name_there_is_a_name_here(clip, there):
    table = clip.points()
    assert table.full_name(there) == SAME[there]
    assert there in table and table[there].name == SAME[there]
    assert table.match(there) == [SAME[there]]


def test_globs_and_layers(clip):
    table = clip.points()
    assert table.match("blocks.*.hook_out") == table.match("blocks.*.hook_resid_post")
    assert table.match("blocks.{0,1}.attn.hook_out") == table.match("blocks.*.hook_attn_out")
    tower = table.match("vision_encoder.encoder_layers.*.hook_resid_p*")
    assert tower == table.match("vision.blocks.*.hook_resid_p*")
    # names of this package come first
    assert table.match("*.hook_out") == ["vision.hook_out", "projector.hook_out"]


def test_every_name_of_this_package_stays_itself(model):
    table = model.points()
    assert not table.aliases.keys() & set(table)
    assert set(table.aliases.values()) <= set(table)
    assert all(table.full_name(name) == name for name in table)
    if not model.family.takes_images:
        assert not any("vision" in name for name in table.aliases)


def test_runs_take_them(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    _, cache = clip.run_with_cache(prompt, names_filter=["blocks.1.hook_out", "embed.hook_out"])
    assert list(cache) == ["hook_embed", "blocks.1.hook_resid_post"]
    assert torch.equal(cache["blocks.1.hook_out"], cache["resid_post", 1])
    assert "blocks.1.hook_out" in cache and "blocks.0.hook_out" not in cache
    seen = []
    clip.run_with_hooks(
        prompt, fwd_hooks=[("blocks.1.hook_out", lambda x, hook: seen.append(hook))]
    )
    assert [hook.name for hook in seen] == ["blocks.1.hook_resid_post"]
    new = torch.ones(clip.cfg.d_model)
    one, other = (
        clip.run(prompt, interventions=ActivationPatch(name, at=Last(), value=new))
        for name in ("blocks.0.hook_out", "blocks.0.hook_resid_post")
    )
    assert torch.equal(one, other)
    with pytest.raises(Exception, match="computed from pictures"):  # asked by name, so not left out
        clip.run_with_cache("no picture", names_filter=["vision_projector.hook_out", "hook_embed"])


def test_what_a_norm_gives_is_not_what_attention_gives(gemma3):
    table = gemma3.points()
    assert table.full_name("blocks.0.ln1_post.hook_out") == "blocks.0.hook_attn_out"
    assert table.full_name("blocks.0.ln2_post.hook_out") == "blocks.0.hook_mlp_out"
    with pytest.raises(PointError, match="hook_attn_out is what the stream receives"):
        table["blocks.0.attn.hook_out"]
    with pytest.raises(PointError, match="hook_mlp_out is what the stream receives"):
        table.match("blocks.0.mlp.hook_out")
    assert table.full_name("vision_encoder.encoder_layers.0.attn.hook_out") == (
        "vision.blocks.0.hook_attn_out"
    )


def test_a_tower_s_last_output_is_what_the_projector_reads_or_refused(clip, gemma3):
    assert gemma3.points().full_name("vision_encoder.hook_out") == "vision.hook_out"
    with pytest.raises(PointError, match=r"vision\.hook_out is what it reads"):
        clip.points().match("vision_encoder.hook_out")


def test_reasons(clip, llama):
    with pytest.raises(PointError, match="hook_resid_mid"):
        clip.points("blocks.0.ln2.hook_in")
    with pytest.raises(
        PointError, match=r"There is no point 'blocks\.9\.attn\.hook_out'\."
    ) as error:
        clip.points("blocks.9.attn.hook_out")
    assert "norm or a gate" not in str(error.value)
    with pytest.raises(PointError, match="without vision"):
        llama.points("vision_encoder.encoder_layers.0.hook_out")


def test_the_table_names_points_only():
    block = {"hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"}
    shared = {*tiny._TOWER, *tiny._DECODER}
    assert block | set(aliases.IN_BLOCK.values()) <= shared
