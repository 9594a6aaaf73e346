"""The tower's own lens against CLIP's and SigLIP's own parts, on tiny random models in folders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from vlm_lens import Images, Patches
from vlm_lens.errors import PointError
from vlm_lens.lenses import LensError, TowerLens

LABELS = ["Greece", "Peru", "red fruit"]
POINTS = [f"vision.blocks.{i}.hook_resid_post" for i in range(3)]


def whole_model(vlm, kind):
    """A CLIP or SigLIP model whose tower is that of a tiny LLaVA."""
    text = {
        "vocab_size": tiny.D_VOCAB, "hidden_size": 20, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
        "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    vision = vlm.hf_model.config.vision_config.to_dict()
    if kind == "clip":
        made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        text |= {"hidden_size": 24, "num_attention_heads": 3, "projection_size": 24}
        made = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    for part in (made.text_model, made.vision_model):
        tiny.randomize(part, seed=3)
    own = vlm.hf_model.model.vision_tower.state_dict()
    shared = {k.removeprefix("vision_model."): v for k, v in own.items()}
    made.vision_model.load_state_dict(shared, strict=False)
    return made


@pytest.fixture(scope="module")
def folders(load, tmp_path_factory):
    found = {}
    for kind, name in (("clip", "clip-llama"), ("siglip", "siglip-mistral")):
        folder = tmp_path_factory.mktemp(kind)
        whole_model(load(name), kind).save_pretrained(folder)
        tiny.tokenizer("bytes").save_pretrained(folder)
        found[kind] = (load(name), folder)
    return found


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_is_the_cosine_of_a_patch_with_a_text(folders, kind, picture):
    vlm, folder = folders[kind]
    lens = TowerLens.from_pretrained(vlm, folder, LABELS, template="a {}")
    lens = replace(lens, k=3, tokens=("Peru",))
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    seen = lens.run(vlm, prompt)
    row = seen.rows[0]
    model = (CLIPModel if kind == "clip" else SiglipModel).from_pretrained(folder).eval()
    tokens = tiny.tokenizer("bytes")
    read = tiny.plain_read(vlm.hf_model, prompt.inputs, POINTS)
    texts = []
    for label in LABELS:  # one by one: CLIP's padding plays no part
        options = {"padding": "max_length", "max_length": 32} if kind == "siglip" else {}
        ids = tokens(f"a {label}", return_tensors="pt", **options)["input_ids"]
        texts.append(model.get_text_features(input_ids=ids).pooler_output[0])
    for layer, point in enumerate(POINTS):
        for i, (picture_row, position) in enumerate(row.pairs):
            state = model.vision_model.post_layernorm(read[point][picture_row, position])
            mine = (
                model.visual_projection(state)
                if kind == "clip"
                else model.vision_model.head(state[None, None])[0]
            )
            exact = torch.stack([torch.cosine_similarity(mine, t, dim=0) for t in texts])
            top = exact.topk(3)
            torch.testing.assert_close(row.top_probs[layer, i], top.values, rtol=1e-4, atol=1e-5)
            assert [t for t, _ in seen.top(layer, i)] == [LABELS[j] for j in top.indices]
            assert float(row.token_probs[layer, i, 0]) == pytest.approx(float(exact[1]), abs=1e-5)


def test_the_class_token_of_the_last_block_is_what_clip_says(folders, picture):
    vlm, folder = folders["clip"]
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    lens = TowerLens.from_pretrained(vlm, folder, LABELS)
    seen = lens.run(vlm, prompt)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        own = model.get_image_features(pixel_values=prompt.inputs["pixel_values"]).pooler_output[0]
        exact = torch.nn.functional.normalize(own, dim=0) @ lens.directions.T
    assert seen.rows[0].positions[0] == 0
    assert seen.top(2, 0)[0][1] == pytest.approx(float(exact.max()), abs=1e-5)


def test_stands_over_the_picture_and_becomes_scores(folders, picture):
    vlm, folder = folders["clip"]
    lens = TowerLens.from_pretrained(vlm, folder, LABELS)
    lens = replace(lens, at=Patches(0), tokens=("Peru",))
    prompt = vlm.prompt("Q:<image>\nA:<image>", [tiny.noise_picture(4), picture])
    seen = lens.run(vlm, prompt)
    assert seen.layers == (0, 1, 2)
    cells = [v for line in seen.plot_image().data[-1].z[1::2] for v in line]
    assert cells == pytest.approx(seen.rows[0].top_probs[-1, :, 0].tolist())
    assert "tower block" in seen.plot().layout.yaxis.title.text
    table = seen.to_dataframe()
    assert set(table["kind"]) == {"image 0"} and set(table["token"]) <= set(LABELS)
    assert seen.scores("token").over_picture(layer=1)._repr_html_()
    both = replace(lens, at=Images()).run(vlm, prompt)
    assert {row for row, _ in both.rows[0].pairs} == {0, 1}
    assert both.plot_image(1).data[-1].z is not None


def test_what_does_not_belong_together_is_refused(folders, picture, load):
    vlm, folder = folders["clip"]
    with pytest.raises(LensError, match="allow_transfer"):
        TowerLens.from_pretrained(folders["siglip"][0], folder, LABELS)
    with pytest.raises(LensError, match="list of words"):
        TowerLens.from_pretrained(vlm, folder, "Greece")
    with pytest.raises(LensError, match="No model could be read"):
        TowerLens.from_pretrained(vlm, folder / "nowhere", LABELS)
    with pytest.raises(LensError, match="of type 'llama'"):
        TowerLens.from_pretrained(vlm, load("llama").name, LABELS)
    lens = TowerLens.from_pretrained(vlm, folder, LABELS)
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    with pytest.raises(PointError, match="tower's residual stream"):
        replace(lens, points="blocks.0.hook_resid_post").run(vlm, prompt)
    with pytest.raises(LensError, match="none of the labels"):
        replace(lens, tokens=("Rome",)).run(vlm, prompt)
