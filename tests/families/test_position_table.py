"""Tables of positions, learned and fixed: where they end, and that nothing runs beyond."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers

from families import texts, tiny_blip2
from vlm_lens import HookedVLM
from vlm_lens.errors import PromptError
from vlm_lens.measures import AnswerProb, GeneratedTokens

MOST = 64
_OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": MOST,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
_MORE = {
    "opt": ("OPT", _OPT),
    "biogpt": ("BioGpt", texts._MHA),
    "codegen": ("CodeGen", texts._GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", texts._GPT),
    "mpt": ("Mpt", {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4,
                    "max_seq_len": MOST}),
    "xglm": ("XGLM", {"vocab_size": 64, "d_model": 32, "ffn_dim": 48, "num_layers": 2,
                      "attention_heads": 4, "max_position_embeddings": MOST, "bos_token_id": 1,
                      "eos_token_id": 2, "pad_token_id": 0}),
}  # fmt: skip
WITH_TABLE = ("gpt2", "gpt_neo", "gptj", "opt", "biogpt", "codegen", "gpt_bigcode", "mpt")
WITHOUT = ("gpt_neox", "phi", "granite", "falcon", "bloom", "ernie4_5", "xglm")  # MOST ids too


def build(name: str) -> torch.nn.Module:
    if name not in _MORE:
        return texts.build(name)
    title, options = _MORE[name]
    config = getattr(transformers, f"{title}Config")(**options)
    return tiny.randomize(getattr(transformers, f"{title}ForCausalLM")(config))


def ids(length: int, rows: int = 1) -> dict[str, torch.Tensor]:
    tokens = (torch.arange(length) % 40 + 10).repeat(rows, 1)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.parametrize("name", WITH_TABLE)
def test_a_prompt_longer_than_the_table_is_refused(name):
    model = build(name)
    vlm = HookedVLM(model)
    assert vlm.architecture.n_positions == MOST
    whole = vlm.run(ids(MOST))
    with torch.no_grad():
        torch.testing.assert_close(whole, model(**ids(MOST), use_cache=False).logits)
        with pytest.raises((IndexError, RuntimeError)):  # what transformers itself says
            model(**ids(MOST + 1), use_cache=False)
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(PromptError, match=f"{MOST + 1} positions, .* table of {MOST}, .*shorten"):
        vlm.run(ids(MOST + 1))
    assert not ran


@pytest.mark.parametrize("name", WITHOUT)
def test_positions_that_are_computed_go_on(name):
    model = build(name)
    vlm = HookedVLM(model)
    assert vlm.architecture.n_positions is None
    prompt = ids(MOST + 1)
    torch.testing.assert_close(vlm.run(prompt), model(**prompt, use_cache=False).logits.detach())


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj"])
def test_new_tokens_count(name, no_forward):
    """The last new token is not read: from n positions on, a table of m gives m - n + 1 tokens."""
    vlm = HookedVLM(build(name))
    prompt, fits = ids(MOST - 3, rows=2), 4
    ends = {"eos_token_id": -1}
    assert vlm.generate(prompt, max_new_tokens=fits, **ends).tokens.shape == (2, fits)
    swept = vlm.sweep(prompt, [()], measure=AnswerProb([(7,) * fits] * 2), progress=False)
    assert len(swept.records) == 2
    no_forward(vlm)
    told = f"{fits} new tokens are read after it.* table of {MOST}.*at most {fits} tokens"
    with pytest.raises(PromptError, match=told):
        vlm.generate(prompt, max_new_tokens=fits + 1, **ends)
    with pytest.raises(PromptError, match="at most 4 tokens"):  # 20 by default
        vlm.generate(prompt)
    for measure in (GeneratedTokens(fits + 1), AnswerProb([(7,) * (fits + 1), (8,)])):
        with pytest.raises(PromptError, match=told):
            vlm.sweep(prompt, [()], measure=measure, progress=False)


def test_numbers_that_are_given_count():
    vlm = HookedVLM(build("gpt2"))
    later = ids(5) | {"position_ids": torch.arange(MOST - 4, MOST + 1)[None]}
    with pytest.raises(PromptError, match=f"{MOST + 1} positions"):
        vlm.run(later)
    assert vlm.run(later | {"position_ids": torch.arange(MOST - 5, MOST)[None]}).shape[1] == 5


def test_the_language_model_of_a_vlm_has_its_own_table(no_forward):
    """BLIP-2's tower, Q-Former and OPT each have one; the OPT's 512 positions are the prompt's."""
    vlm = HookedVLM(tiny_blip2.build(), tiny_blip2.processor())
    assert vlm.architecture.n_positions == 512
    picture = tiny.noise_picture()
    text = "Q:<image>\n" + "Q:France\nA:Paris " * 60
    no_forward(vlm)
    with pytest.raises(PromptError, match="table of 512.*fewer pictures"):
        vlm.run(text, [picture])
