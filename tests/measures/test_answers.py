from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.measures import AnyOf, LogitDiff, MeasureError, Prob
from vlm_lens.measures.answers import answer_ids, first_tokens


@pytest.mark.parametrize("name", (*tiny.VLMS, *tiny.LMS))
def test_a_text_is_split_as_it_would_follow_a_prompt(load, name):
    vlm = load(name)
    for prompt in ("Q:Peru\nA:", "The colour of the fruit is"):
        for text in ("Lima", " Lima", "red", " capital"):
            ids, whole = answer_ids(vlm, text), vlm.to_tokens(prompt + text)
            assert whole[-len(ids) :] == ids, (prompt, text)
            assert vlm.tokenizer.decode(whole).endswith(text)


@pytest.mark.parametrize("name", (*tiny.VLMS, *tiny.LMS))
def test_a_word_with_and_without_its_space_are_two_and_can_be_meant_together(load, name):
    vlm = load(name)
    prompt = vlm.prompt("Q:Peru\nA:")
    ids = {text: answer_ids(vlm, text)[0] for text in ("red", " red")}
    assert ids["red"] != ids[" red"]
    logits = vlm.run(prompt)[:, -1:]
    probs = {
        answer: float(Prob(answer).bind(vlm, prompt).values(logits))
        for answer in ("red", " red", AnyOf("red", " red"))
    }
    expected = logits[0, -1].softmax(-1)
    assert probs["red"] == pytest.approx(float(expected[ids["red"]]), rel=1e-5)
    assert probs[AnyOf("red", " red")] == pytest.approx(probs["red"] + probs[" red"], rel=1e-5)
    # the same token twice counts once
    twice = Prob(AnyOf(ids["red"], "red")).bind(vlm, prompt).values(logits)
    assert float(twice) == pytest.approx(probs["red"], rel=1e-6)


def test_answers_that_begin_alike_are_refused(clip):
    prompt = clip.prompt(["Q:Peru\nA:", "A:"])
    long = next(
        (a, a[:-1]) for a in ("Lima", "Tokyo", "Athens", "country")
        if answer_ids(clip, a)[0] == answer_ids(clip, a[:-1])[0]
    )  # fmt: skip
    for one, two in (("Lima", "Lima"), long, (AnyOf("red", " red"), " red"), (17, 17)):
        with pytest.raises(MeasureError, match="both begin with the token"):
            LogitDiff(one, two).bind(clip, prompt)
    with pytest.raises(MeasureError, match="both begin"):
        LogitDiff(("red", " red"), (" red", " red")).bind(clip, prompt)
    assert LogitDiff(("red", " red"), (" red", "red")).bind(clip, prompt)


def test_a_space_alone_is_no_answer():
    """In the models that ship, " Paris" begins with the token of a space."""
    vlm = HookedVLM.from_pretrained("toy-llava")
    prompt = vlm.prompt("Q:France\nA:")
    paris = answer_ids(vlm, "Paris")[0]
    assert Prob(AnyOf("Paris", " Paris")).bind(vlm, prompt).tokens.ids.tolist() == [[paris]]
    with pytest.raises(MeasureError, match="a space alone"):
        Prob(" Paris").bind(vlm, prompt)


def test_answers_of_rows(clip):
    tokens = first_tokens(clip, (3, AnyOf(5, 9)), 2)
    x = torch.randn(2, clip.cfg.d_vocab, dtype=torch.float64)
    assert torch.allclose(
        tokens.log_total(x).exp(), torch.stack([x[0, 3].exp(), x[1, [5, 9]].exp().sum()])
    )
    assert torch.equal(tokens.best(x), torch.stack([x[0, 3], x[1, [5, 9]].max()]))


def test_wrong_answers_are_refused_before_a_run(clip, no_forward):
    prompt = clip.prompt("A:")
    no_forward(clip)
    bare = HookedVLM(clip.hf_model)
    for vlm, answer, match in (
        (clip, ("a", "b"), "2 answers were given for a prompt of 1 row"),
        (clip, clip.cfg.d_vocab, "no token of this model"),
        (clip, -1, "no token of this model"),
        (clip, "", "no letters"),
        (bare, "a", "without a tokenizer"),
    ):
        with pytest.raises(VLMLensError, match=match):
            vlm.sweep(prompt.inputs, [()], measure=Prob(answer), progress=False)
    with pytest.raises(MeasureError, match="names no answer"):
        AnyOf()
