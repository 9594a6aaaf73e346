"""What a run has read, by name, layer and position."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, All, At, Find, Images, Last, Patches
from vlm_lens.errors import PointError, PositionError, PromptError, VectorError, VLMLensError
from vlm_lens.hooked.cache import ActivationCache, CacheSlice

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Peru\nA:", "Q:<image>\nA:"]
P = "blocks.1.hook_resid_post"


@pytest.fixture
def batch(clip):
    return clip.prompt(TEXTS, [tiny.noise_picture(i) for i in range(3)])


def test_names_and_short_names(clip, batch):
    _, cache = clip.run_with_cache(batch)
    assert cache["resid_post", 1] is cache[P]
    assert ("resid_post", 1) in cache
    assert P in cache
    assert "pattern" not in cache
    assert cache["merged",] is cache["hook_merged"]
    assert list(cache) == clip.architecture.points.match(None)
    assert torch.equal(
        cache.stack("resid_post"), torch.stack([cache["resid_post", i] for i in (0, 1)])
    )
    assert cache.stack("vision.z").shape[0] == 3
    table = cache.to_dataframe()
    assert len(table) == len(cache)
    assert int(table["bytes"].sum()) == sum(v.nbytes for v in cache.values())
    assert "blocks.*.hook_resid_post" in repr(cache)
    shown = cache._repr_html_()  # a row a kind, not a row an activation
    kinds = {re.sub(r"blocks\.\d+\.", "blocks.*.", name) for name in cache}
    assert shown.count("<tr>") == len(kinds) + 1 and all(kind in shown for kind in kinds)


def test_what_was_not_read(clip, batch):
    _, cache = clip.run_with_cache(batch, names_filter="blocks.0.*")
    with pytest.raises(PointError, match="was not read in this run: add it to names_filter"):
        _ = cache[P]
    with pytest.raises(PointError, match="There is no point"):
        _ = cache["blocks.9.hook_resid_post"]
    with pytest.raises(PointError, match="No layer"):
        cache.stack("vision.resid_post")
    assert "hook_pattern" not in str(list(clip.run_with_cache(batch)[1]))


@pytest.mark.parametrize("at", [Last(), Find(":", -1), At((-1, -2)), -1])
def test_kept_positions_are_those_of_the_whole(clip, batch, at):
    names = ["blocks.*.hook_resid_post", "blocks.0.attn.*"]
    _, whole = clip.run_with_cache(batch, names_filter=names)
    _, kept = clip.run_with_cache(batch, names_filter=names, positions=at)
    places = [[p for _, p in kept.at.resolve(layout)] for layout in batch.layouts]
    for name in whole:
        full = whole[name]
        square = full.shape[1:3] != (batch.length, *full.shape[2:3]) and "pattern" in name
        square = square or "scores" in name
        rows = [x[:, p] if square else x[p] for x, p in zip(full, places, strict=True)]
        # of scores and patterns only the rows that are kept are computed: another computation
        close = {"rtol": 1e-5, "atol": 1e-6} if square else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(kept[name], torch.stack(rows), **close)
        assert torch.equal(whole.select(name, kept.at), torch.stack(rows)), name
    with pytest.raises(PositionError, match="kept the activations at"):
        kept.select(P, Last())


def test_positions_of_pictures(clip):
    pictures = [tiny.noise_picture(i) for i in range(2)]
    prompt = clip.prompt("Q:<image>\nA:red\n\nQ:<image>\nA:", pictures)
    at = Patches(1, rows=0)
    names = ["vision.blocks.0.hook_resid_post", "projector.hook_out", "hook_merged"]
    _, whole = clip.run_with_cache(prompt, names_filter=names)
    _, kept = clip.run_with_cache(prompt, names_filter=names, positions=at)
    assert torch.equal(kept[names[0]][0], whole[names[0]][1, 1:5])
    assert torch.equal(kept[names[1]][0], whole[names[1]][1, :4])
    assert torch.equal(kept[names[2]][0], kept[names[1]][0])  # the same patches, in the text


def test_kept_positions_are_copies(clip, batch):
    _, kept = clip.run_with_cache(batch, names_filter=P, positions=Last())
    assert kept[P].untyped_storage().nbytes() == kept[P].nbytes


def test_refused_before_any_compute(clip, batch, no_forward):
    no_forward(clip)
    with pytest.raises(PositionError, match="does not occur"):
        clip.run_with_cache(batch, names_filter=P, positions=Find("Spain"))
    with pytest.raises(PointError, match="Did you mean"):
        clip.run_with_cache(batch, names_filter="blocks.0.hook_resid_pst")
    with pytest.raises(PromptError, match="no"):
        clip.run_with_cache("Q:Peru", names_filter="vision.*")


def test_rows_of_different_size(clip, batch):
    with pytest.raises(PositionError, match="one by one"):
        clip.run_with_cache(batch, names_filter=P, positions=All())


def test_slices(clip, batch):
    _, cache = clip.run_with_cache(
        batch, names_filter=["blocks.*.hook_resid_post", "blocks.*pattern"]
    )
    piece = cache.slice_at(("blocks.*.hook_resid_post",), Last())
    assert isinstance(piece, CacheSlice)
    point = clip.points(P)[P]
    assert torch.equal(piece.value_at(point, clip.facts), cache[P][:, -1:])
    assert piece == cache.slice_at(("blocks.*.hook_resid_post",), Last())
    with pytest.raises(VectorError, match="was not read at hook_merged"):
        piece.value_at(clip.points("hook_merged")["hook_merged"], clip.facts)
    with pytest.raises(VectorError, match="holds none of hook_embed"):
        cache.slice_at(("hook_embed",), Last())
    _, kept = clip.run_with_cache(batch, names_filter=P, positions=Last())
    assert kept.slice_at((P,), Last()).values[P] == piece.values[P]
    with pytest.raises(VectorError, match=r"kept the activations at Last\(\)"):
        kept.slice_at((P,), Images())


def test_moved(clip, batch):
    _, cache = clip.run_with_cache(batch, names_filter=P, device="cpu")
    moved = cache.to("meta")
    assert moved[P].device.type == "meta"
    assert moved.layouts == cache.layouts
    assert cache[P].device.type == "cpu"


def test_it_is_saved_and_loaded_without_the_model(clip, batch, tmp_path):
    names = ["blocks.*.hook_resid_*", "vision.blocks.1.attn.hook_pattern", "hook_merged"]
    _, cache = clip.run_with_cache(batch, names_filter=names)
    assert cache.save(tmp_path / "run") == tmp_path / "run.json"
    loaded = ActivationCache.load(tmp_path / "run")
    assert loaded == cache and list(loaded) == list(cache)
    assert torch.equal(loaded["resid_post", 1], cache["resid_post", 1])
    assert torch.equal(loaded["resid_post", -1], cache["resid_post", 1])
    assert torch.equal(loaded["vision_encoder.encoder_layers.1.attn.hook_pattern"],
                       cache["vision.blocks.1.attn.hook_pattern"])  # fmt: skip
    assert torch.equal(loaded.stack("resid_pre"), cache.stack("resid_pre"))
    assert torch.equal(loaded.select(P, Find(":", -1)), cache.select(P, Find(":", -1)))
    assert loaded.layouts[0].image[1].grid == batch.layouts[0].image[1].grid
    with pytest.raises(PointError, match="was not read in this run"):
        loaded["blocks.0.hook_mlp_out"]
    with pytest.raises(PointError, match="There is no point"):
        loaded["blocks.7.hook_mlp_out"]
    # it knows whose it is, and is written as the cache itself is
    patch = ActivationPatch(P, Last(), loaded)
    assert patch == ActivationPatch(P, Last(), cache)
    assert torch.equal(
        clip.run(batch, interventions=patch),
        clip.run(batch, interventions=ActivationPatch(P, Last(), cache)),
    )
    assert loaded.source() == clip.facts


def test_it_is_pickled_and_copied(clip, batch, tmp_path):
    _, cache = clip.run_with_cache(batch, names_filter="blocks.*.hook_resid_*")
    cache.save(tmp_path / "run")
    for one in (cache, ActivationCache.load(tmp_path / "run")):
        elsewhere = pickle.loads(pickle.dumps(one))
        assert elsewhere == cache and elsewhere.source() == clip.facts
        assert ActivationPatch(P, Last(), elsewhere) == ActivationPatch(P, Last(), cache)
        with pytest.raises(VLMLensError, match="read from a file"):
            elsewhere.decompose_resid()
    copied = copy.deepcopy(cache)
    assert copied == cache and copied[P] is not cache[P]
    assert torch.equal(copied.accumulated_resid(), cache.accumulated_resid())  # its model is there
    made = clip.generate(batch.texts[1], max_new_tokens=2, names_filter=P)
    assert pickle.loads(pickle.dumps(made)).cache == made.cache


def test_what_was_kept_at_a_place_is_saved_so(clip, batch, tmp_path):
    _, cache = clip.run_with_cache(batch, names_filter=P, positions=Last())
    half = ActivationCache(
        {P: cache[P].bfloat16()}, clip.architecture.points, cache.layouts, at=cache.at
    )
    half.save(tmp_path / "half.json".removesuffix(".json"))
    loaded = ActivationCache.load(tmp_path / "half.json")
    assert loaded == half and loaded[P].dtype == torch.bfloat16 and loaded.source is None
    assert loaded != cache
    with pytest.raises(PositionError, match="kept the activations at Last"):
        loaded.select(P, At(0))
    Ablate(P, Last()).save(tmp_path / "edit")
    with pytest.raises(VLMLensError, match="holds no activations"):
        ActivationCache.load(tmp_path / "edit")
    with pytest.raises(VLMLensError, match="There is no file"):
        ActivationCache.load(tmp_path / "gone")
