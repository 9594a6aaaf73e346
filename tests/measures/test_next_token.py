from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vlm_lens import ActivationPatch, At, Last, Steer
from vlm_lens.errors import PromptError
from vlm_lens.measures import (
    KL,
    AnyOf,
    BoundLogits,
    Custom,
    LogitDiff,
    LogProb,
    MeasureError,
    Prob,
    Rank,
    Top1,
    at_last,
)

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
PATCH = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=VECTOR)
TEXTS = ["Q:Greece\nA:", "What is the capital?"]


def plain_logits(vlm, layer=None) -> torch.Tensor:
    """Last logits of each text alone, without padding, by transformers and one torch hook."""
    found = []
    for text in TEXTS:
        inputs = dict(vlm.prompt(text).inputs)

        def write(module, args, output):
            x = (output if isinstance(output, torch.Tensor) else output[0]).clone()
            x[:, -1] = VECTOR
            return x if isinstance(output, torch.Tensor) else (x, *output[1:])

        handle = None
        if layer is not None:
            blocks = vlm.hf_model.get_submodule(vlm.architecture.decoder.stack.path)
            handle = blocks[layer].register_forward_hook(write)
        with torch.no_grad():
            found.append(vlm.hf_model(**inputs).logits[0, -1])
        if handle:
            handle.remove()
    return torch.stack(found)


def test_values_equal_closed_forms_on_plain_transformers(model):
    prompt = model.prompt(TEXTS)
    reference = torch.randn(2, model.cfg.d_vocab)
    result = {
        measure: model.sweep(prompt, PATCH.each_layer(), measure=measure, progress=False)
        for measure in (
            Prob(7), Prob((7, 9)), LogProb(AnyOf(7, 9)), LogitDiff(7, (9, 11)), Rank((7, 9)),
            KL(), KL(reference),
        )
    }  # fmt: skip
    plain = plain_logits(model)
    for layer in range(model.cfg.n_layers):
        logits = plain_logits(model, layer)
        log_probs = logits.log_softmax(-1)
        for row in range(2):
            one, p = logits[row], log_probs[row]
            nine = (7, 9)[row]
            expected = {
                Prob(7): p[7].exp(),
                Prob((7, 9)): p[nine].exp(),
                LogProb(AnyOf(7, 9)): (p[7].exp() + p[9].exp()).log(),
                LogitDiff(7, (9, 11)): one[7] - one[(9, 11)[row]],
                KL(): functional.kl_div(p, plain[row].softmax(-1), reduction="sum"),
                KL(reference): functional.kl_div(p, reference[row].softmax(-1), reduction="sum"),
            }
            for measure, value in expected.items():
                record = result[measure].records[2 * layer + row]
                found = record[measure.column]
                assert found == pytest.approx(float(value), rel=2e-3, abs=2e-5), measure
            rank = result[Rank((7, 9))].records[2 * layer + row]["rank"]
            assert rank == int((one > one[nine]).sum())
    assert [r["kl"] for r in result[KL()].baseline] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_values_are_differentiable(llama):
    prompt = llama.prompt(TEXTS)
    logits = at_last(llama.run(prompt), prompt.layouts).double()
    for measure in (
        Prob(7),
        LogProb(AnyOf(3, 5)),
        LogitDiff(3, 5),
        KL(),
        Custom(lambda x: x[3] ** 2),
    ):
        bound = measure.bind(llama, prompt)
        assert isinstance(bound, BoundLogits)
        assert torch.autograd.gradcheck(bound.values, logits.clone().requires_grad_())
        assert bound.values(logits).shape == (2,)
        assert measure.differentiable or isinstance(measure, Custom)
    assert not Rank(3).differentiable


def test_kl_of_barred_tokens_is_finite():
    logits = torch.tensor([[[1.0, 2.0, -torch.inf]]])
    measure = KL(torch.tensor([0.0, 0.0, -torch.inf]))

    class Reference:
        def logits(self):
            return measure.to.data[None]

    value = measure.values(logits, Reference())
    p = torch.tensor([1.0, 2.0]).log_softmax(-1)
    assert float(value) == pytest.approx(
        float(-(0.5 * (p + torch.log(torch.tensor(2.0)))).sum()), rel=1e-5
    )


def test_kl_takes_logits_of_this_prompt(clip):
    prompt = clip.prompt(TEXTS)
    for wrong in (torch.zeros(3), torch.zeros(3, clip.cfg.d_vocab)):
        with pytest.raises(MeasureError, match="takes logits"):
            KL(wrong).bind(clip, prompt)
    with pytest.raises(MeasureError, match="'plain'"):
        KL("clean")


def test_a_differentiable_function_says_so(clip):
    assert Custom(lambda x: x[3], differentiable=True).differentiable
    bound = Custom(lambda x: float(x[3])).bind(clip, clip.prompt("A:"))
    with pytest.raises(MeasureError, match="gives a float"):
        bound.values(torch.zeros(1, 1, clip.cfg.d_vocab))


def test_measures_are_values(tmp_path):
    measures = (Prob([" a", 3]), LogitDiff(AnyOf("a", 3), 5), KL(torch.arange(3.0)), Rank(3))
    for i, measure in enumerate(measures):
        measure.save(tmp_path / str(i))
        assert type(measure).load(tmp_path / str(i)) == measure
        assert hash(measure) == hash(type(measure).load(tmp_path / str(i)))


def test_of_a_run_only_the_logits_that_are_seen_are_computed(clip, picture):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    given = []
    handle = clip.hf_model.lm_head.register_forward_pre_hook(
        lambda module, args: given.append(args[0].shape[1])
    )
    try:
        bound = Top1().bind(clip, prompt)
        (record,) = bound.of_run(())
        assert given == [1]
        edit = Steer("hook_logits", At((0,)), torch.ones(clip.cfg.d_vocab))
        bound.of_run(edit)  # acts where nobody looks, and must act
        assert given == [1, prompt.length]
        assert clip.run(prompt, last_logits=2).shape[1] == 2
    finally:
        handle.remove()
    logits = clip.run(prompt)[0, -1]
    assert record["token_id"] == int(logits.argmax())
    assert record["prob"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-5)
    with pytest.raises(PromptError, match="at least 1"):
        clip.run(prompt, last_logits=0)
