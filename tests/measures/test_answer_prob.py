from __future__ import annotations

import pytest
import tiny
import torch
from families.every import FAMILIES
from reach.trial import read

from vlm_lens import Ablate, ActivationPatch, Last
from vlm_lens.measures import AnswerProb, AnyOf, GeneratedTokens, MeasureError
from vlm_lens.measures.answers import answer_ids

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
TEXTS = ["Q:Greece\nA:", "What is the capital?"]
ANSWERS = ("Athens", " Lima or red")


def teacher_forced(vlm, text, answer, pictures=(), layer=None) -> list[float]:
    """`log p` of each token of an answer, by transformers on prompt + answer and one torch hook."""
    prompt = vlm.prompt(text, list(pictures) or None)
    inputs, ids = dict(prompt.inputs), answer_ids(vlm, answer)
    n, more = prompt.length, torch.tensor([ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def write(module, args, output):
        x = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        x[:, n - 1] = VECTOR
        return x if isinstance(output, torch.Tensor) else (x, *output[1:])

    handle = None
    if layer is not None:
        blocks = vlm.hf_model.get_submodule(vlm.architecture.decoder.stack.path)
        handle = blocks[layer].register_forward_hook(write)
    with torch.no_grad():
        log_probs = vlm.hf_model(**inputs).logits[0, n - 1 : -1].log_softmax(-1)
    if handle:
        handle.remove()
    return log_probs.gather(-1, more[0][:, None])[:, 0].tolist()


@pytest.mark.parametrize("engine", ("replay", "full"))
def test_an_answer_equals_plain_teacher_forcing(model, engine):
    prompt = model.prompt(TEXTS)
    edits = [ActivationPatch(f"blocks.{i}.hook_resid_post", Last(), VECTOR) for i in range(2)]
    mean, total = (
        model.sweep(prompt, edits, measure=measure, engine=engine, progress=False)
        for measure in (AnswerProb(ANSWERS), AnswerProb(ANSWERS, normalize=False))
    )
    for layer in (None, 0, 1):
        for row, (text, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
            expected = torch.tensor(teacher_forced(model, text, answer, layer=layer))
            for result, value in ((mean, expected.mean()), (total, expected.sum())):
                records = result.baseline if layer is None else result.records[2 * layer :]
                record = records[row]
                assert record["answer_logprob"] == pytest.approx(float(value), rel=1e-3)
                assert record["answer_prob"] == pytest.approx(float(value.exp()), rel=2e-3)


def test_greedy_says_an_answer_that_is_the_most_likely_at_each_token(model):
    """Of one row what it says itself, of the other something else."""
    prompt = model.prompt(TEXTS)
    edits = [ActivationPatch(f"blocks.{i}.hook_resid_post", Last(), VECTOR) for i in range(2)]
    said = model.sweep(prompt, edits, measure=GeneratedTokens(3), progress=False)
    for layer in range(2):
        own = [tuple(record["tokens"]) for record in said.records[2 * layer :][:2]]
        other = (*own[1][:2], (own[1][2] + 1) % model.cfg.d_vocab)
        measure = AnswerProb([own[0], other])
        for engine in ("replay", "full"):
            got = model.sweep(prompt, edits[layer], measure=measure, engine=engine, progress=False)
            assert [record["answer_greedy"] for record in got.records] == [True, False]


def test_an_answer_after_a_picture(vlm, picture):
    prompt = vlm.prompt("<image>A:", [picture])
    edit = ActivationPatch("blocks.1.hook_resid_post", Last(), VECTOR)
    for engine in ("replay", "full"):
        result = vlm.sweep(
            prompt, [edit], measure=AnswerProb("Lima"), engine=engine, progress=False
        )
        expected = teacher_forced(vlm, "<image>A:", "Lima", [picture], layer=1)
        found = result.records[0]["answer_logprob"]
        assert found == pytest.approx(sum(expected) / len(expected), rel=1e-3)


def test_edits_of_logits_and_ends_of_texts(clip):
    """An edit of the logits counts, also of all of them; an end token within an answer is one."""
    prompt = clip.prompt(TEXTS[0])
    end = clip.hf_model.generation_config.eos_token_id or 2
    answer = [(end, 5, end, 6)]
    edit = Ablate("hook_logits", at=Last())
    for engine in ("replay", "full"):
        result = clip.sweep(
            prompt, [edit], measure=AnswerProb(answer, normalize=False), engine=engine,
            progress=False,
        )  # fmt: skip
        ids = torch.tensor(answer[0])
        inputs = torch.cat([prompt.inputs["input_ids"], ids[None]], 1)
        with torch.no_grad():
            logits = clip.hf_model(inputs).logits[0, prompt.length - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        assert result.baseline[0]["answer_logprob"] == pytest.approx(
            float(log_probs.sum()), rel=1e-3
        )
        changed = -torch.log(torch.tensor(float(clip.cfg.d_vocab))) + log_probs[1:].sum()
        assert result.records[0]["answer_logprob"] == pytest.approx(float(changed), rel=1e-3)


def test_any_of_is_refused(clip):
    with pytest.raises(MeasureError, match="one answer a row"):
        AnswerProb(AnyOf("a", "b")).bind(clip, clip.prompt("A:"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_on_every_family(name, tmp_path):
    """From replays and from forced generations, what a plain run on prompt and answer gives."""
    vlm = FAMILIES[name].load(tmp_path)
    prompt = vlm.prompt("<image>\nQ:Peru\nA:", [tiny.noise_picture(1, (40, 36))])
    answer = tuple(answer_ids(vlm, "Lima") + answer_ids(vlm, "Tokyo") + answer_ids(vlm, "red"))[:3]
    site = vlm.points()["blocks.0.hook_mlp_out"].site

    def zero(module, args, output):
        x = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        x.view(-1, x.shape[-1])[prompt.length - 1] = 0.0
        return x if isinstance(output, torch.Tensor) else (x, *output[1:])

    grown = dict(prompt.inputs)
    for key, value in prompt.inputs.items():
        if value.dim() >= 2 and value.shape[:2] == (1, prompt.length):
            new = {"input_ids": torch.tensor([answer]), "attention_mask": torch.ones(1, 3).long()}
            more = new.get(key, value[:, -1:].expand(-1, 3, *value.shape[2:]))
            grown[key] = torch.cat([value, more], 1)
    handle = vlm.hf_model.get_submodule(site.module).register_forward_hook(zero)
    with torch.no_grad():
        logits = vlm.hf_model(**grown, use_cache=False).logits[0, prompt.length - 1 : -1]
    handle.remove()
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).mean()
    edit = Ablate("blocks.0.hook_mlp_out", Last())
    found = [
        vlm.sweep(prompt, [edit], measure=AnswerProb([answer]), engine=engine, progress=False)
        for engine in ("auto", "full")
    ]
    scores = [result.records[0]["answer_logprob"] for result in found]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    if name != "paligemma":  # which reads all of a longer prompt both ways
        assert scores[0] == pytest.approx(float(expected), rel=1e-4)


def test_a_model_that_cannot_be_forced_is_refused():
    """Janus hands no processor of logits on to transformers."""
    vlm, prompt, _ = read("janus")
    bound = AnswerProb(((20, 33),)).bind(vlm, prompt)
    with pytest.raises(MeasureError, match="code of its own"):
        bound.of_run(())
    one = AnswerProb(20).bind(vlm, prompt).of_run(())[0]["answer_logprob"]
    assert one == pytest.approx(float(vlm.run(prompt)[0, -1].log_softmax(-1)[20]), abs=1e-4)
