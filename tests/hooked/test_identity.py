"""What a folder must not take for the same run: everything that numbers depend on."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image

from vlm_lens import Ablate, ActivationPatch, HookedVLM, Last, Steer, VLMLensError
from vlm_lens.hooked.identity import run_identity
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.many import read_each
from vlm_lens.storage.identity import model_settings

PATCH = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=torch.ones(32))
TEXT = "Q:<image>\nA:"


class LoRA(torch.nn.Linear):
    """What PEFT puts in a layer's place, as far as a switch and a scale go."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2))
        self._disable_adapters, self.scaling = False, {"default": 1.0}

    def forward(self, x):
        added = x @ self.down.T @ self.up.T * self.scaling["default"]
        return super().forward(x) + (0 if self._disable_adapters else added)


def picture(mode="RGB", transparency=None):
    made = Image.new("P", (28, 28))
    made.putdata([i % 3 for i in range(28 * 28)])
    made.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    if transparency is not None:
        made.info["transparency"] = transparency
    return made.convert(mode) if mode != "P" else made


def two_coloured(*colours):
    made = picture("P")
    made.putpalette(colours)
    return made


@pytest.fixture
def vlm():
    model = tiny.build("clip-llama")
    layer = model.model.language_model.layers[0].mlp
    layer.down_proj = LoRA(layer.down_proj)
    return HookedVLM(model, copy.deepcopy(tiny.reader("clip-llama")))


def down(vlm):
    return vlm.hf_model.model.language_model.layers[0].mlp.down_proj


@contextmanager
def plain_hook(vlm, by):
    handle = down(vlm).register_forward_hook(lambda module, args, out: out * by)
    try:
        yield
    finally:
        handle.remove()


def set_to(vlm, path, value):
    *names, last = path.split(".")
    for name in names:
        vlm = getattr(vlm, name)
    setattr(vlm, last, value)


@torch.no_grad()
def in_place(vlm):
    vlm.hf_model.lm_head.weight[5].mul_(1.5)


def past_autograd(vlm):
    vlm.hf_model.model.vision_tower.embeddings.patch_embedding.weight.data[3, 1, 2, 2] += 0.1


def replaced(vlm):
    norm = vlm.hf_model.model.language_model.norm
    norm.weight = torch.nn.Parameter(norm.weight + 0.5)


def buffer(vlm):
    vlm.hf_model.model.language_model.rotary_emb.inv_freq.mul_(1.1)


def patched_forward(vlm):
    layer = vlm.hf_model.model.language_model.layers[1].mlp
    layer.forward = lambda x: type(layer).forward(layer, x) * 2


def eps(vlm):
    vlm.hf_model.model.language_model.norm.variance_epsilon = 0.1


# what is changed about the model itself: each changes the logits, or what is told of them
CHANGES = {
    "a weight in place": in_place,
    "a weight past autograd": past_autograd,
    "a weight replaced": replaced,
    "a buffer": buffer,
    "weights scaled": lambda v: down(v).weight.data.mul_(2),
    "an adapter switched off": lambda v: set_to(down(v), "_disable_adapters", True),
    "an adapter's scale": lambda v: down(v).scaling.update(default=0.5),
    "a module's number": eps,
    "a module's forward": patched_forward,
    "train mode": lambda v: v.hf_model.train(),
    "a dtype": lambda v: v.hf_model.double(),
    "attention": lambda v: v.hf_model.set_attn_implementation("eager"),
    "generation config": lambda v: set_to(v, "hf_model.generation_config.repetition_penalty", 1.5),
    "the processor's mean": lambda v: set_to(
        v, "processor.image_processor.image_mean", [0.1, 0.2, 0.3]
    ),
    "the processor's size": lambda v: set_to(v, "processor.image_processor.do_rescale", False),
    "a token": lambda v: v.processor.tokenizer.add_tokens(["<new>"]),
    "a chat template": lambda v: set_to(v, "processor.chat_template", "{{ messages }}"),
}
CONTEXTS = {
    "intervening": lambda v: v.intervening(Ablate("blocks.0.hook_mlp_out", at=Last())),
    "another intervening": lambda v: v.intervening(
        Steer("blocks.0.hook_mlp_out", Last(), torch.ones(32))
    ),
    "hooks": lambda v: v.hooks([("blocks.1.hook_resid_post", lambda x, hook: x * 2)]),
    "hooks with another number": lambda v: v.hooks(
        [("blocks.1.hook_resid_post", lambda x, hook: x * 3)]
    ),
    "a plain hook": lambda v: plain_hook(v, 2),
    "a plain hook with another number": lambda v: plain_hook(v, 3),
    "autocast": lambda v: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture
def save_into(tmp_path):
    """The same call into the same folder, of a sweep and of a reading."""

    def sweep(vlm, picture=None, measure="top1", edit=PATCH, text=TEXT):
        prompt = vlm.prompt(text, [picture or two_coloured(200, 0, 0, 0, 200, 0)])
        vlm.sweep(prompt, edit.each_layer(), measure=measure, save=tmp_path / "s", progress=False)

    def read(vlm, picture=None, **more):
        raw = RawPrompt(TEXT, (picture or two_coloured(200, 0, 0, 0, 200, 0),))
        read_each(vlm, [raw], save=tmp_path / "r", **{"at": Last()} | more)

    return SimpleNamespace(sweep=sweep, read=read)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_or_processor_is_another_run(vlm, change, save_into):
    identity = run_identity(vlm)
    save_into.sweep(vlm)
    save_into.read(vlm)
    save_into.sweep(vlm)  # the same
    save_into.read(vlm)
    CHANGES[change](vlm)
    assert run_identity(vlm) != identity
    for again in (save_into.sweep, save_into.read):
        with pytest.raises(VLMLensError, match="another"):
            again(vlm)


def test_open_contexts_are_another_run_each(vlm, save_into):
    save_into.sweep(vlm)
    save_into.read(vlm)
    seen = [run_identity(vlm)]
    for opened in CONTEXTS.values():
        with opened(vlm):
            assert run_identity(vlm) not in seen
            seen.append(run_identity(vlm))
            for again in (save_into.sweep, save_into.read):
                with pytest.raises(VLMLensError, match="another"):
                    again(vlm)
    assert run_identity(vlm) == seen[0]
    save_into.sweep(vlm)


def test_other_pictures_are_another_run(vlm, save_into):
    save_into.read(vlm, two_coloured(200, 0, 0, 0, 200, 0))
    for other in (
        two_coloured(0, 0, 200, 0, 200, 0), picture("RGB"), picture("RGBA"), picture("L"),
        picture("P", transparency=1), picture("P").rotate(90), picture("P").resize((14, 14)),
    ):  # fmt: skip
        with pytest.raises(VLMLensError, match="another prompts"):
            save_into.read(vlm, other)
    save_into.sweep(vlm)
    with pytest.raises(VLMLensError, match="another prompt"):
        save_into.sweep(vlm, two_coloured(0, 0, 200, 0, 200, 0))


def test_what_is_asked_is_told_apart(vlm, save_into):
    def measure(by, logits):
        return float(logits[0]) * by

    save_into.sweep(vlm, measure=partial(measure, 1))
    save_into.sweep(vlm, measure=partial(measure, 1))
    for other in (partial(measure, 2), "top1", [1], [2], lambda logits: float(logits[0])):
        with pytest.raises(VLMLensError, match="another measure"):
            save_into.sweep(vlm, measure=other)
    for other in (
        PATCH + PATCH, ActivationPatch("blocks.*.hook_resid_post", -2, torch.ones(32)),
        ActivationPatch("blocks.*.hook_resid_pre", Last(), torch.ones(32)),
        ActivationPatch("blocks.*.hook_resid_post", Last(), torch.ones(32) * 2),
    ):  # fmt: skip
        listed = [other] if len(getattr(other, "parts", "1")) > 1 else other
        with pytest.raises(VLMLensError, match="another"):
            if isinstance(listed, list):
                save_into.sweep(vlm, edit=SimpleNamespace(each_layer=lambda: listed))  # noqa: B023
            else:
                save_into.sweep(vlm, measure=partial(measure, 1), edit=other)


def test_runs_leave_the_identity_as_it_was(model):
    """What a model notes for itself while it runs does not count."""
    before = run_identity(model)
    prompt = model.prompt("Q:Greece\nA:")
    with ExitStack() as opened:
        opened.enter_context(torch.inference_mode(False))
        model.run(prompt)
        model.generate(prompt, max_new_tokens=3)
        model.sweep(prompt, Ablate("blocks.*.hook_mlp_out", at=Last()).each_layer(), progress=False)
    assert run_identity(model) == before


def test_the_same_model_loaded_again_is_the_same(tmp_path):
    folder = tiny.save("clip-llama", tmp_path / "a")
    other = tiny.save("clip-llama", tmp_path / "b")
    first, second = HookedVLM.from_pretrained(folder), HookedVLM.from_pretrained(other)
    assert run_identity(first) == run_identity(second)
    assert model_settings(first.hf_model) == model_settings(second.hf_model)
