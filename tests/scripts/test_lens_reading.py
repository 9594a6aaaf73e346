"""The table of lenses: what is best, what is no more than its control, models without a fit."""

from __future__ import annotations

from scripts.docs.lens_reading import page


def row(lens, layer, share, shuffled=0.0, positions=100):
    return {"model": "toy", "of": "pictures", "lens": lens, "layer": layer, "share": share,
            "shuffled": shuffled, "positions": positions}  # fmt: skip


def test_each_lens_at_its_best_layer_and_the_best_of_all_in_bold():
    rows = [row("logit", 0, 0.1), row("logit", 3, 0.2), row("LatentLens", 1, 0.6)]
    (line,) = [one for one in page(rows, []).splitlines() if one.startswith("| toy")]
    assert line.startswith("| toy, pictures | 0.20 (0.00) at 3 | - |")
    assert "**0.60 (0.00) at 1**" in line
    assert "tuned lens, KL" not in page(rows, [])  # no model with a fit
    kl = [{"model": "toy", "kind": "text", "point": "blocks.0.hook_resid_post", "kl": 0.5,
           "kl, logit lens": 2.0}]  # fmt: skip
    assert "| toy, text | 0.50 / 2.00 |" in page(rows, kl)


def test_what_is_no_more_than_its_control_or_of_few_patches_is_not_marked():
    for one in (row("logit", 0, 0.4, 0.3), row("logit", 0, 0.25, positions=8)):
        assert "**" not in page([one], [])
