"""The same activations as TransformerLens's bridge, by name, wherever both have the point."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest
import tiny
import torch
from families import tiny_gemma3, tiny_idefics3, tiny_llava_next, tiny_mistral3
from torch import Tensor

from vlm_lens import HookedVLM

pytestmark = pytest.mark.slow  # transformer_lens takes seconds to import


class Case(NamedTuple):
    save: Callable
    compared: int  # points of this package that the bridge has too
    alone: tuple[str, ...]  # globs of those that it does not have
    load: Callable = HookedVLM.from_pretrained


# Features with the pictures in their places have no point there; scores of a tower's attention have
# one that holds the pattern; and the tower's last output is not what LLaVA's projector reads.
ALONE = ("hook_merged", "vision.blocks.?.attn.hook_attn_scores")
CASES = {
    "llava": Case(lambda folder: tiny.save("clip-llama", folder), 80, (*ALONE, "vision.hook_out")),
    "llava-siglip": Case(
        lambda folder: tiny.save("siglip-mistral", folder), 80, (*ALONE, "vision.hook_out")
    ),
    "llava-next": Case(tiny_llava_next.save, 80, (*ALONE, "vision.hook_out")),
    "idefics3": Case(tiny_idefics3.save, 67, ALONE),
    "gemma3": Case(tiny_gemma3.save, 67, ALONE),
    # its Pixtral tower is one opaque part there
    "mistral3": Case(tiny_mistral3.save, 37, ("hook_merged", "vision.*"), tiny_mistral3.load),
}
SPELLINGS = 70  # at the least, names of the bridge that are understood


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model, the bridge around a copy of it, and a prompt with a picture."""
    case = CASES[request.param]
    vlm = case.load(case.save(tmp_path_factory.mktemp(request.param)))
    prompt = vlm.prompt("a<image>b", [tiny.noise_picture(1, (40, 30))])
    return case, vlm, bridge_of(vlm), prompt


def bridge_of(vlm: HookedVLM):
    """TransformerLens's bridge around a copy, because it changes the model that it is given."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = copy.deepcopy(vlm.hf_model)
    return build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        tokenizer=vlm.tokenizer,
        dtype=torch.float32,
        device="cpu",
    )


def split(prompt) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens, and the rest, as the bridge takes them."""
    inputs = dict(prompt.inputs)
    return inputs.pop("input_ids"), inputs


def read_as(name: str) -> str:
    """The point that a name of the bridge holds; a write to a norm's input is another thing."""
    for norm, stream in {".ln1.hook_in": "pre", ".ln2.hook_in": "mid"}.items():
        if name.endswith(norm):
            return f"{name.removesuffix(norm)}.hook_resid_{stream}"
    return name


def is_other(name: str) -> bool:
    """Whether a name of the bridge means another thing there than here."""
    if name.startswith("vision") and name.endswith(".hook_attn_scores"):
        return True
    return name.endswith(".hook_normalized")  # there before the norm's weight and bias


def test_every_shared_point_has_the_same_value(pair):
    case, vlm, bridge, prompt = pair
    table = vlm.points()
    logits, ours = vlm.run_with_cache(prompt, names_filter=list(table))
    tokens, rest = split(prompt)
    with torch.no_grad():
        output, theirs = bridge.run_with_cache(tokens, **rest)
    torch.testing.assert_close(logits, getattr(output, "logits", output), atol=1e-4, rtol=1e-4)

    compared: dict[str, str] = {}
    for name in theirs:
        stands_for = read_as(name)
        if stands_for not in table or is_other(name):
            continue
        point = table[stands_for].name
        # there without an axis of pictures where the model has none
        value = ours[point] if ours[point].dim() == theirs[name].dim() else ours[point][0]
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4, msg=name)
        compared[name] = point
    shared = set(compared.values())
    assert len(shared) == case.compared and len(compared) >= SPELLINGS
    for point in table:
        alone = any(fnmatchcase(point, glob) for glob in case.alone)
        assert alone != (point in shared), point


def test_norms_are_called_otherwise(pair):
    case, vlm, bridge, prompt = pair
    tokens, rest = split(prompt)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(tokens, **rest)
    _, ours = vlm.run_with_cache(prompt, names_filter="blocks.1.ln?.hook_normalized")
    for name, value in ours.items():
        assert not torch.allclose(value, theirs[name], atol=1e-3)
        after = theirs[name.replace("hook_normalized", "hook_out")]
        torch.testing.assert_close(value, after, atol=1e-4, rtol=1e-4)


WRITTEN = (
    "blocks.0.hook_in", "blocks.0.hook_out", "blocks.0.ln1.hook_out", "blocks.0.ln2.hook_out",
    "blocks.0.attn.hook_in", "blocks.0.attn.hook_out", "blocks.0.attn.o.hook_in",
    "blocks.0.attn.o.hook_out", "blocks.0.attn.q.hook_out", "blocks.0.attn.k.hook_out",
    "blocks.0.attn.v.hook_out", "blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_in",
    "blocks.0.mlp.hook_out", "blocks.0.mlp.gate.hook_out", "blocks.0.mlp.in.hook_out",
    "blocks.0.mlp.out.hook_in", "blocks.0.mlp.out.hook_out", "ln_final.hook_out",
    "unembed.hook_in", "embed.hook_out", "vision_encoder.embeddings.hook_out",
    "vision_encoder.pre_layernorm.hook_out", "vision_encoder.encoder_layers.0.hook_out",
    "vision_encoder.encoder_layers.0.mlp.in.hook_out", "vision_projector.hook_in",
    "vision_projector.hook_out",
)  # fmt: skip


def test_a_write_to_a_name_does_what_it_does_there(load, picture):
    vlm = load("clip-llama")
    bridge = bridge_of(vlm)
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    tokens, rest = split(prompt)
    plain = vlm.run(prompt)
    for name in WRITTEN:
        hooks = [(name, lambda x, hook: 0.5 * x + 0.1 * x.flip(-1))]
        with torch.no_grad():
            output = bridge.run_with_hooks(tokens, fwd_hooks=hooks, **rest)
        ours = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
        assert (ours - plain).abs().max() > 0.01, name
        theirs = getattr(output, "logits", output)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=name)
    # Not among them: `hook_resid_mid`, which there is the second norm's input alone, so that a
    # write to it never reaches the stream that the MLP's output is added to.


@pytest.mark.parametrize("forwards_before", [0, 1])
def test_a_write_to_the_layer_that_the_projector_reads_acts(load, picture, forwards_before):
    vlm = load("clip-llama")
    layer = vlm.cfg.vision.n_layers_read - 1
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    twin = copy.deepcopy(vlm.hf_model)
    fresh = HookedVLM(twin, vlm.processor)
    for _ in range(forwards_before):  # transformers puts its own hooks on at the first
        fresh.run(prompt)
    there = f"vision_encoder.encoder_layers.{layer}.hook_out"
    here = f"vision.blocks.{layer}.hook_resid_post"
    expected = tiny.plain_write(copy.deepcopy(vlm.hf_model), prompt.inputs, here, torch.zeros_like)
    for name in (there, here):
        changed = fresh.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x * 0)])
        assert (changed - plain).abs().max() > 0.1
        assert torch.equal(changed, expected)
    # With transformer-lens 4.3 and transformers 5 the bridge's own write at `there` leaves the
    # logits as they are: transformers takes the hidden state before the bridge's hook is called.
