"""Variants of many prompts: what each prompt alone gives, in order, kept on disk, resumed."""

from __future__ import annotations

import functools

import pytest
import tiny
import torch

from vlm_lens import (
    Ablate,
    ActivationPatch,
    At,
    Find,
    Last,
    LogitDiff,
    Resample,
    Steer,
    Text,
    VLMLensError,
)
from vlm_lens.measures import GeneratedTokens
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.many import read_each

PICTURES = [tiny.noise_picture(seed) for seed in range(3)]
TEXTS = [
    "Q:Greece\nA:", "<image>A:", "Q:Peru\nA:Lima Q:Greece\nA:", "<image><image>Q:Peru\nA:",
    "Q:Peru\nA:", "A:", "Q:Chad\nA:",
]  # fmt: skip
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


def edits(vlm):
    vector = VECTOR[: vlm.cfg.d_model]
    return [
        (),
        ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=vector),
        Steer("blocks.0.hook_resid_post", at=Find(":", -1), vector=vector, scale=2.0),
    ]


@pytest.mark.parametrize("measure", ["logits", GeneratedTokens(2)], ids=["logits", "generate"])
def test_records_are_those_of_each_prompt_alone_in_order(clip, measure, tmp_path):
    options = {"measure": measure, "progress": False}
    by_number = Ablate("blocks.0.hook_mlp_out", at=At((1, -2)), by=0.0)  # not of the padded row
    changes = [*edits(clip), by_number]
    found = clip.sweep(TEXTS, changes, PICTURES, batch_size=3, **options)
    saved = clip.sweep(TEXTS, changes, PICTURES, batch_size=3, save=tmp_path / "it", **options)
    assert len(found) == len(saved) == len(TEXTS) * len(changes)
    pictures, records = iter(PICTURES), iter(zip(found.records, saved.records, strict=True))
    for row, text in enumerate(TEXTS):
        mine = [next(pictures) for _ in range(text.count("<image>"))]
        alone = clip.sweep(text, changes, mine, **options)
        for expected in alone.records:
            for one in next(records):
                assert one["row"] == row and set(one) == {*expected, "row"}
                for name, value in expected.items():
                    if isinstance(value, torch.Tensor):
                        torch.testing.assert_close(one[name], value, atol=1e-4, rtol=1e-4)
                    else:
                        assert one[name] == value
        if measure == "logits":
            torch.testing.assert_close(
                found.baseline[row]["logits"], alone.baseline[0]["logits"], atol=1e-4, rtol=1e-4
            )
    assert saved.records[-1]["row"] == len(TEXTS) - 1 and len(saved.records[2:5]) == 3
    assert found.engines == saved.engines and sum(found.engines.values()) > len(changes)


def test_values_of_each_prompt_stay_with_their_prompt(llama):
    """Batches of like length are in another order than the prompts, and hold some of them."""
    texts = ["abcdefghij", "abcdef", "abcdefgh", "abc"]
    point, d_model = "blocks.0.hook_resid_post", llama.cfg.d_model
    values = torch.randn(4, 1, d_model, generator=torch.Generator().manual_seed(1))
    resample = Resample(point, Last(), values, seed=2)
    drawn = [values[n, 0] for n in resample.drawn(4, 4)]
    many = {
        ActivationPatch(point, Last(), values): values[:, 0],
        Steer(point, Last(), values[:, 0]): values[:, 0],
        ActivationPatch(point, At((1, -1)), values.expand(4, 2, d_model)): values[:, 0],
        resample: drawn,
    }
    for edit, own in many.items():
        kind = ActivationPatch if edit is resample else type(edit)
        alone = [llama.run(t, interventions=kind(point, edit.at, v))[:, -1]
                 for t, v in zip(texts, own, strict=True)]  # fmt: skip
        for size in (1, 2, 4, None):
            found = llama.sweep(texts, [edit], measure="logits", batch_size=size, progress=False)
            got = [r["logits"].reshape(1, -1) for r in found.records]
            torch.testing.assert_close(torch.cat(got), torch.cat(alone), atol=1e-4, rtol=1e-4)
        for size in (1, 2, 4):
            read = read_each(llama, texts, at=Last(), points="blocks.0.hook_resid_post",
                             batch_size=size, interventions=edit)  # fmt: skip
            if kind is ActivationPatch:
                assert torch.equal(read[:, 0], torch.stack(list(own)))
    with pytest.raises(VLMLensError, match="does not fit"):
        llama.sweep(texts, [Steer(point, Last(), values[:2, 0])], batch_size=2, progress=False)
    counts = [len(Text().resolve(llama.prompt(text).layout)) for text in texts]
    each = [torch.randn(n, d_model) for n in counts]  # other numbers of places in each
    found = llama.sweep(texts, [Steer(point, Text(), torch.cat(each))], measure="logits",
                        batch_size=4, progress=False)  # fmt: skip
    alone = [llama.run(t, interventions=Steer(point, Text(), v))[:, -1]
             for t, v in zip(texts, each, strict=True)]  # fmt: skip
    got = torch.cat([r["logits"].reshape(1, -1) for r in found.records])
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_numbers_of_positions_do_not_depend_on_what_runs_beside(llama):
    texts = ["abcdef", "abcdefghij", "abcdefgh"]
    edit = Steer("blocks.0.hook_resid_post", at=At(3), vector=VECTOR)
    alone = torch.cat([llama.run(text, interventions=edit)[:, -1] for text in texts])
    for size in (1, 2, 3, None):
        found = llama.sweep(texts, [edit], measure="logits", batch_size=size, progress=False)
        got = [r["logits"].reshape(-1, alone.shape[-1]) for r in found.records]
        torch.testing.assert_close(torch.cat(got), alone, atol=1e-4, rtol=1e-4)
    logits = llama.run(texts, interventions=edit)[:, -1]
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(VLMLensError, match="its sequence has"):
        llama.sweep(texts, [Steer(edit.point, At(9), VECTOR)], batch_size=3, progress=False)


def test_an_answer_for_each_prompt_goes_with_it(clip):
    answers, others = [3, 5, 7, 9, 11, 13, 15], [4, 6, 8, 10, 12, 14, 16]
    raws = [RawPrompt(t) for t in TEXTS if "<image>" not in t]
    measure = LogitDiff(answers[: len(raws)], others[: len(raws)])
    found = clip.sweep(raws, edits(clip), measure=measure, batch_size=2, progress=False)
    for record in found.records:
        row = record["row"]
        logits = clip.run(raws[row], interventions=edits(clip)[found.records.index(record) % 3])
        expected = logits[0, -1, answers[row]] - logits[0, -1, others[row]]
        assert record["logit_diff"] == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(VLMLensError, match="3 answers were given for a prompt of 5 rows"):
        clip.sweep(raws, [()], measure=LogitDiff([1, 2, 3], 9), batch_size=2, progress=False)


def test_a_folder_is_gone_on_with(clip, tmp_path, monkeypatch):
    folder, options = tmp_path / "it", {"batch_size": 2, "progress": False}
    texts = [t for t in TEXTS if "<image>" not in t]
    first = clip.sweep(texts, edits(clip), save=folder, **options)
    before = list(first.records)
    files = sorted(folder.glob("batch-*"))
    assert len(files) > 2 and not list(folder.glob("chunk-*"))
    files[1].unlink()
    again = clip.sweep(texts, edits(clip), save=folder, **options)
    assert list(again.records) == before and 0 < sum(again.engines.values()) <= 6

    @functools.wraps(type(clip.hf_model).forward)
    def refuse(self, *args, **kwargs):
        raise AssertionError("nothing was left to run")

    with monkeypatch.context() as patched:
        patched.setattr(type(clip.hf_model), "forward", refuse)
        done = clip.sweep(texts, edits(clip), save=folder, **options)
    assert list(done.records) == before and done.to_dataframe().equals(first.to_dataframe())
    assert list(done.baseline) == list(first.baseline) and len(done.baseline) == len(texts)
    for other in ({"batch_size": 3}, {"measure": [1]}):
        with pytest.raises(VLMLensError, match="another"):
            clip.sweep(texts, edits(clip), save=folder, **{**options, **other})


def test_what_does_not_fit_is_refused_before_any_run(clip, no_forward):
    no_forward(clip)
    edit = Steer("blocks.0.hook_resid_post", at=Find("Q", -1), vector=1.0)
    with pytest.raises(VLMLensError, match="'Q'"):  # the last prompt, "A:", has none
        clip.sweep(["Q:Peru\nA:", "Q:Chad\nA:", "A:"], [edit], batch_size=2, progress=False)
    with pytest.raises(VLMLensError, match="batch_size= puts texts of like length together"):
        clip.sweep(clip.prompt("Q:Peru\nA:"), [edit], batch_size=2)
    with pytest.raises(VLMLensError, match="batch_size is at least 1"):
        clip.sweep(["Q:Peru\nA:"], [edit], batch_size=0)
