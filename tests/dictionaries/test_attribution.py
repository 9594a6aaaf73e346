"""Attribution by feature, against finite differences of the spliced run."""

from __future__ import annotations

import numpy as np
import pytest
from families import bench

from dictionaries import written
from vlm_lens import At, LogitDiff, Rank, VLMLensError
from vlm_lens.dictionaries import Dictionary, Splice

POINT = "blocks.0.hook_resid_post"


def test_equals_finite_differences(clip, tmp_path):
    w = written.weights()
    sae = Dictionary.from_pretrained(written.saelens(tmp_path, w, "topk", k=written.K), point=POINT)
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    measure = LogitDiff(5, 9)
    found = sae.attribution(clip, prompt, measure)
    table = found.entries(6, largest="magnitude")
    for row in table.itertuples():
        values = []
        for factor in (1.01, 0.99):
            edit = Splice(sae, At(row.position), True, (row.feature,), factor)
            logits = clip.run(prompt, interventions=edit)[0, -1].double()
            values.append(float(logits[5] - logits[9]))
        assert row[-1] == pytest.approx((values[0] - values[1]) / 0.02, rel=0.03, abs=1e-4)
    one = sae.attribution(clip, prompt, measure, at=prompt.layout.last, features=[2, 4])
    kept = found.values.sel(position=prompt.layout.last)
    known = [f for f in (2, 4) if f in kept["feature"]]
    np.testing.assert_allclose(
        one.values.sel(feature=known).to_numpy()[0], kept.sel(feature=known).to_numpy(), atol=1e-6
    )


def test_a_transcoder_by_what_it_writes(clip, tmp_path):
    w = written.weights()
    points = {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
    sae = Dictionary.from_pretrained(written.saelens(tmp_path, w, "transcoder", metadata=points))
    prompt = clip.prompt("Q:ab\nA:")
    found = sae.attribution(clip, prompt, LogitDiff(5, 9))
    row = next(found.entries(1, largest="magnitude").itertuples())
    f = float(sae.features(clip, prompt).values.sel(position=row.position, feature=row.feature))
    values = []
    for step in (0.01, -0.01):
        edit = sae.steer(row.feature, step * f, at=int(row.position))
        logits = clip.run(prompt, interventions=edit)[0, -1].double()
        values.append(float(logits[5] - logits[9]))
    assert row[-1] == pytest.approx((values[0] - values[1]) / 0.02, rel=0.03, abs=1e-4)


def test_what_has_no_gradient_is_refused(clip, tmp_path):
    sae = Dictionary.from_pretrained(
        written.saelens(tmp_path, written.weights(), "standard"), point=POINT
    )
    with pytest.raises(VLMLensError, match="no gradient"):
        sae.attribution(clip, "Q:a", Rank(5))
