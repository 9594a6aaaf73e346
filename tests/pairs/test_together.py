"""Pairs of one shape run together, and give what each gives alone."""

from __future__ import annotations

import pytest
import tiny
from families.every import VLMS
from patching.pairs_of_prompts import same_shape

from vlm_lens import HookedVLM, Images, Last, Text
from vlm_lens.pairs import Each, Pair, Pairs, together

FAMILIES = ("qwen2_vl", "idefics2", "llava_next", "gemma3")
Z = "blocks.*.attn.hook_z"


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory) -> HookedVLM:
    return VLMS[request.param].load(tmp_path_factory.mktemp(request.param))


def drawn(vlm: HookedVLM, seed: int, word: str = "Peru") -> Pair:
    """A pair in which one picture is another one."""
    clean, corrupt = (
        vlm.prompt(f"Q:<image>{word}\nA:", [tiny.noise_picture(seed + i, (32, 48))]) for i in (0, 1)
    )
    return Pair(clean, corrupt, 17 + seed, 29)


@pytest.mark.slow
def test_rows_of_a_batch_are_what_they_are_alone(vlm, monkeypatch):
    pairs = Pairs((drawn(vlm, 0), drawn(vlm, 1), drawn(vlm, 2, "Peru and Lima"), drawn(vlm, 3)))
    joined, sizes = together.joined, []

    def counted(model, prompts):
        sizes.append(len(prompts))
        return joined(model, prompts)

    for points, at, heads, direction in (
        (Z, [Images(), Text(), Last()], [0, 3], "denoise"),
        ("blocks.*.attn.hook_k", [Images()], [0], "noise"),
        ("projector.hook_out", [Images()], None, "denoise"),
    ):
        options = {"at": at, "heads": heads, "direction": direction, "progress": False}
        monkeypatch.setattr(together, "joined", counted)
        found = pairs.patch(vlm, points, **options)
        monkeypatch.setattr(together, "joined", joined)
        for i, pair in enumerate(pairs):
            alone = pair.patch(vlm, points, **options)
            assert found.sel(pair=i).values.to_numpy() == pytest.approx(
                alone.values.to_numpy(), abs=2e-3
            ), (points, direction)
    assert set(sizes) == {1, 3}  # the one with another word stands alone


def test_places_of_each_pair_are_its_own(vlm):
    def one_patch(pair):
        image = pair.clean.layout.image[0]
        if not image.text.grids:
            return {"first": list(image.positions[:1])}
        number = 0 if pair.answer == 17 else 1
        return {"first": [image.text.grid().positions[number]]}

    pairs = Pairs((drawn(vlm, 0), drawn(vlm, 1)))
    found = pairs.patch(vlm, "hook_merged", at=one_patch, progress=False)
    for i, pair in enumerate(pairs):
        alone = pair.patch(vlm, "hook_merged", at=one_patch, progress=False)
        assert found.sel(pair=i).values.to_numpy() == pytest.approx(
            alone.values.to_numpy(), abs=2e-3
        )


def test_little_memory_means_small_batches_and_the_same_numbers(clip):
    pairs = Pairs(tuple(Pair(*same_shape(clip), 17 + i, 29) for i in range(3)))
    plain = pairs.patch(clip, Z, at=Each(Images()), heads=[0], progress=False)
    small = pairs.patch(clip, Z, at=Each(Images()), heads=[0], memory=1, progress=False)
    assert small.values.to_numpy() == pytest.approx(plain.values.to_numpy(), abs=1e-4)


def test_cells_that_hold_the_same_in_both_runs_are_not_computed(clip, monkeypatch):
    texts = ("Q:Greece\nA:Athens\n\nQ:Peru\nA:", "Q:Greece\nA:Athens\n\nQ:Lima\nA:")
    pair = Pair(*map(clip.prompt, texts), 17, 29)
    first = pair.changed.resolve(pair.clean.layout)[0][1]
    starts = []
    from vlm_lens.sweep import runner

    real = runner.replay

    def counted(baseline, variants, **options):
        starts.extend(v.start.position for v in variants)
        return real(baseline, variants, **options)

    monkeypatch.setattr(runner, "replay", counted)
    found = pair.patch(clip, Z, at="each", progress=False)
    assert min(starts) >= first > 3
    before = found.values.sel(position=range(first)).to_numpy()
    assert (abs(before) < 1e-6).all()
