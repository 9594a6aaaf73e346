"""What must hold at every point of every family, against plain torch hooks."""

from __future__ import annotations

import copy

import tiny
import torch

from vlm_lens import ActivationPatch, All, HookedVLM

ATTENTION = ("hook_attn_scores", "hook_pattern")


def modular(vlm: HookedVLM) -> list[str]:
    """The points that plain torch hooks can reach."""
    return [n for n in vlm.points() if not n.endswith(ATTENTION)]


def noise(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return x + torch.randn(x.shape, generator=source).to(x.dtype)


def check_reads(vlm: HookedVLM, prompt) -> None:
    """Each point fires with its declared shape and the value that plain hooks give."""
    names = list(vlm.points())
    logits, cache = vlm.run_with_cache(prompt, names_filter=names)
    assert list(cache) == names
    plain = tiny.plain_read(vlm.hf_model, prompt.inputs, modular(vlm))
    assert torch.equal(logits, plain["logits"])
    for name, point in vlm.points().items():
        value = cache[name]
        assert len(point.axes) == value.dim(), name
        for axis, size, actual in zip(point.axes, point.sizes, value.shape, strict=True):
            if size is not None:
                assert size == actual, (name, axis)
            if axis == "batch":
                assert actual == len(prompt), name
            if axis in ("query", "key") or (axis == "pos" and point.space == "text"):
                expected = prompt.length if point.space == "text" else actual
                assert actual == expected, (name, axis)
            if axis == "image":
                assert actual == len(prompt.inputs["pixel_values"]), name
        if name in plain:
            assert torch.equal(value.reshape(plain[name].shape), plain[name]), name


def _middle_by_hand(vlm: HookedVLM, prompt, name: str) -> torch.Tensor:
    """Logits after a change between attention and MLP, the block's end computed by hand."""
    norm, _ = tiny.where(vlm.hf_model, name)
    block, _ = tiny.where(vlm.hf_model, name.replace("resid_mid", "resid_post"))
    middle = noise(tiny.plain_read(vlm.hf_model, prompt.inputs, [name])[name])
    with torch.no_grad():
        end = middle + block.mlp(norm(middle))
    post = name.replace("resid_mid", "resid_post")
    return tiny.plain_write(vlm.hf_model, prompt.inputs, post, lambda x: end)


def check_writes(vlm: HookedVLM, prompt) -> None:
    """A write changes the logits as a plain hook's does; a second write restores them."""
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    for name, point in vlm.points().items():
        if not point.writable:
            continue
        before = []

        def change(x, hook, before=before):
            before.append(x.clone())
            return noise(x.flatten(2) if hook.point.has_heads and "d_head" in hook.point.axes
                         else x).reshape(x.shape)  # fmt: skip

        changed = vlm.run_with_hooks(prompt, fwd_hooks=[(name, change)])
        assert not torch.equal(changed, plain), name
        if not name.endswith(ATTENTION):
            expected = (
                _middle_by_hand(vlm, prompt, name) if "resid_mid" in name
                else tiny.plain_write(vlm.hf_model, prompt.inputs, name, noise)
            )  # fmt: skip
            assert torch.equal(changed, expected), name
        restored = vlm.run_with_hooks(
            prompt, fwd_hooks=[(name, change), (name, lambda x, hook, b=before: b[-1])]
        )
        assert torch.equal(restored, plain), name


def check_patching_back(vlm: HookedVLM, prompt) -> None:
    """What a cache has read, written back, gives the same logits bit for bit."""
    plain, cache = vlm.run_with_cache(prompt, names_filter="*")
    writable = [n for n, p in vlm.points().items() if p.writable]
    for name in writable:
        patch = ActivationPatch(name, at=All(), value=cache)
        assert torch.equal(vlm.run(prompt, interventions=patch), plain), name
    together = [ActivationPatch(n, at=All(), value=cache) for n in writable]
    assert torch.equal(vlm.run(prompt, interventions=together), plain)


def check_cold(model, processor, make) -> None:
    """The first forward that a model ever makes already reads and writes, at what is recorded."""
    recorded = ("resid_pre", "resid_mid", "resid_post", "attn_out", "pattern", "out", "merged")
    pristine = copy.deepcopy(model)
    twin = HookedVLM(model, processor)
    prompt = make(twin)
    plain = tiny.plain_logits(twin.hf_model, prompt.inputs)
    with torch.no_grad():
        twin.hf_model(**prompt.inputs, output_hidden_states=True)
    for name, point in twin.points().items():
        if not point.writable or not name.endswith(recorded):
            continue
        warm = twin.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: noise(x))])
        cold = HookedVLM(copy.deepcopy(pristine), processor)
        logits = cold.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: noise(x))])
        assert torch.equal(logits, warm), name
        assert not torch.equal(logits, plain), name


def check_read_only(vlm: HookedVLM, prompt) -> list[str]:
    """A point that cannot be written says why, and a write by force has no effect."""
    barred = [n for n, p in vlm.points().items() if not p.writable]
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    for name in barred:
        if not name.endswith(ATTENTION):
            forced = tiny.plain_write(vlm.hf_model, prompt.inputs, name, noise)
            assert torch.equal(forced, plain), name
    return barred
