"""The pictures in which features are strongest."""

from __future__ import annotations

import numpy as np
import pytest
from families import bench

from dictionaries import written
from vlm_lens import RawPrompt
from vlm_lens.dictionaries import Dictionary, DictionaryError

POINT = "vision.blocks.1.hook_resid_post"


@pytest.fixture
def sae(clip, tmp_path) -> Dictionary:
    w = written.weights(d_in=clip.cfg.vision.d_model)
    return Dictionary.from_pretrained(written.eleuther(tmp_path, w), point=POINT)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_strongest_patch_of_the_strongest_pictures(clip, sae, tmp_path, batch_size):
    asked = [RawPrompt("Q:<image>\nA:", (bench.noise((48, 40), seed=s),)) for s in range(5)] + [
        RawPrompt("<image>a<image>", (bench.noise((40, 40), seed=9), bench.noise((30, 60))))
    ]
    found = sae.gallery(clip, asked, [3, 7], k=4, captions=list("abcdef"), batch_size=batch_size)
    pictures = []  # (caption, image, activations by patch), one picture after another
    for caption, raw in zip("abcdef", asked, strict=True):
        prompt = clip.as_prompt(raw)
        x = clip.run_with_cache(prompt, names_filter=POINT)[1][POINT]
        for image in prompt.layout.images:
            (row, positions), *_ = image.vision.sequences
            pictures.append((caption, image, sae.encode(x[row, list(positions)]).numpy()))
    for feature in (3, 7):
        order = sorted(pictures, key=lambda p: -p[2][:, feature].max())
        order = [p for p in order if p[2][:, feature].max() > 0][:4]
        table = found.table[found.table.feature == feature]
        assert table.caption.tolist() == [p[0] for p in order]
        assert table.image.tolist() == [p[1].index for p in order]
        np.testing.assert_allclose(
            table.activation, [p[2][:, feature].max() for p in order], atol=1e-4
        )
        for row, (_, image, values) in zip(table.itertuples(), order, strict=True):
            (_, positions), *_ = image.vision.sequences
            grid = image.vision.grid()
            best = positions[int(values[:, feature].argmax())]
            if best in grid.positions:  # not the class token
                assert row.patch == divmod(grid.positions.index(best), grid.cols)
                assert row.pixels == grid.pixels(best)
    page = found.save(tmp_path / "gallery.html").read_text()
    assert page.count("<figure>") == len(found.table)
    assert "http" not in page.replace("data:image", "")
    assert "feature 3" in repr(found) or "3" in repr(found)


def test_captions_are_text(clip, sae, tmp_path):
    asked = [RawPrompt("Q:<image>\nA:", (bench.noise((48, 40)),))]
    page = sae.gallery(clip, asked, k=1, captions=["<script>x"]).save(tmp_path / "g.html")
    assert "<script>" not in page.read_text()
    with pytest.raises(DictionaryError, match="captions"):
        sae.gallery(clip, asked, captions=["a", "b"])
    with pytest.raises(DictionaryError, match="shows a picture"):
        sae.gallery(clip, ["Q:a"])
