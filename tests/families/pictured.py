"""Checks shared by families: the conformance suite, replay, generation under interventions."""

from __future__ import annotations

import torch

from vlm_lens import Ablate, HookedVLM, Images, Last
from vlm_lens.measures import GeneratedTokens
from vlm_lens.testing import conformance

QUICK = (
    "forward equals Hugging Face",
    "every point fires",
    "residual stream is one stream",
    "parts sum to the residual stream",
    "attention rows sum to 1",
    "generation equals Hugging Face",
    "patch -> pixels -> patch",
)


def check_conforms(
    vlm: HookedVLM, text, pictures=None, *, quick: bool = False, cold: bool = True
) -> None:
    """`quick` leaves out the checks that write to every point."""
    report = conformance(vlm, vlm.prompt(text, pictures), only=QUICK if quick else (), cold=cold)
    assert report.passed, report.failures


def check_replay(vlm: HookedVLM, prompt) -> None:
    """Replayed variants, and what is generated after them, are those of full runs."""
    layers = range(vlm.cfg.n_layers)
    names = [f"blocks.{i}.{n}" for i in layers for n in ("hook_resid_mid", "attn.hook_z")]
    variants = [Ablate(n, at) for n in (*names, "hook_merged") for at in (Images(), Last())]
    for measure in (lambda logits: {"logits": logits.tolist()}, GeneratedTokens(3)):
        replayed, full = (
            vlm.sweep(prompt, variants, engine=engine, measure=measure, progress=False)
            for engine in ("replay", "full")
        )
        for one, two in zip(replayed.records, full.records, strict=True):
            assert one.keys() == two.keys()
            if "tokens" in one:
                assert one["tokens"] == two["tokens"]
            else:
                torch.testing.assert_close(
                    torch.tensor(one["logits"]), torch.tensor(two["logits"]), rtol=1e-3, atol=1e-3
                )


def check_generation(vlm: HookedVLM, prompt, name: str, at=None) -> None:
    """Tokens under a write in the prompt are those of full runs on the prompt grown by hand."""
    write = Ablate(name, at=at or Images())
    options = {"max_new_tokens": 4, "eos_token_id": -1}  # no token ends the text
    tokens = vlm.generate(prompt, interventions=write, **options).tokens
    grown = dict(prompt.inputs)
    for step in range(4):
        with torch.no_grad():
            logits = vlm.run(grown, interventions=write)
        new = logits[:, -1].argmax(-1)
        assert torch.equal(new, tokens[:, step]), (name, step)
        for key, column in (("input_ids", new), ("attention_mask", torch.ones_like(new))):
            grown[key] = torch.cat([grown[key], column[:, None]], 1)
