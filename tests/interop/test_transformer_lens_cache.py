"""TransformerLens's cache tools on caches of runs with pictures, against the models' parts."""

from __future__ import annotations

import pytest
import tiny
import torch
from families import texts, tiny_gemma3, tiny_idefics3

from vlm_lens import HookedVLM
from vlm_lens.errors import PointError
from vlm_lens.interop.transformer_lens import to_bridge, to_cache

pytestmark = pytest.mark.slow  # transformer_lens takes seconds to import


class Run:
    """Two rows with a picture each, read here, in TransformerLens's hands."""

    def __init__(self, vlm: HookedVLM, prompt) -> None:
        self.vlm = vlm
        self.logits, self.ours = vlm.run_with_cache(prompt)
        self.theirs = to_cache(self.ours, vlm, to_bridge(vlm))
        self.last = self.ours["resid_post", vlm.cfg.n_layers - 1]
        self.unembed = vlm.hf_model.get_output_embeddings().weight.detach()


@pytest.fixture(scope="module", params=["llava", "idefics3"])
def run(request, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    saved = {"llava": lambda: tiny.save("clip-llama", folder),
             "idefics3": lambda: tiny_idefics3.save(folder)}[request.param]()  # fmt: skip
    vlm = HookedVLM.from_pretrained(saved)
    pictures = [[tiny.noise_picture(n, (40, 30))] for n in range(2)]
    return Run(vlm, vlm.prompt(["a<image>b", "c<image>d"], pictures))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_norm_applied_has_its_weight(run):
    parts = run.theirs.decompose_resid(apply_ln=True)
    close(parts.sum(0) @ run.unembed.T, run.logits)
    heads = run.theirs.stack_head_results(apply_ln=True, incl_remainder=True)
    close(heads.sum(0) @ run.unembed.T, run.logits)
    for mlp_input, norm in ((False, "ln1"), (True, "ln2")):  # what a block reads, not the logits
        parts = run.theirs.decompose_resid(layer=1, mlp_input=mlp_input, apply_ln=True)
        close(parts.sum(0), run.ours[f"blocks.1.{norm}.hook_normalized"])


def test_what_has_the_weight_already_keeps_it_once(run):
    text = getattr(run.vlm.hf_model.model, "language_model", None)
    norm = (text or run.vlm.hf_model.model.text_model).norm
    with torch.no_grad():
        want = norm(run.ours["resid_mid", 0])
    states, labels = run.theirs.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    close(states[labels.index("0_mid")], want)


def test_neurons_and_everything(run):
    n = run.vlm.cfg.n_layers
    close(run.theirs.stack_neuron_results(n, incl_remainder=True).sum(0), run.last)
    for expand in (True, False):
        found = run.theirs.get_full_resid_decomposition(expand_neurons=expand)
        close(found.sum(0), run.last)
        onto = run.theirs.get_full_resid_decomposition(
            expand_neurons=expand, apply_ln=True, project_output_onto=run.unembed[7]
        )
        close(onto.sum(0), run.logits[..., 7])


def test_rows_are_rows(run):
    """The first axis of most tensors counts crops where pictures are split into crops."""
    for chosen, rows, axis in ((1, 1, False), ([1], [1], True), ((0, 1), slice(0, 1), True)):
        one = run.theirs.apply_slice_to_batch_dim(chosen)
        close(one["blocks.1.hook_resid_post"], run.last[rows])
        parts = one.decompose_resid()
        attributed = one.logit_attrs(parts, 7, has_batch_dim=axis)
        close(attributed.sum(0), run.logits[rows][..., 7])
    alone = run.theirs.apply_slice_to_batch_dim([0]).remove_batch_dim()
    parts = alone.decompose_resid(pos_slice=-1)
    attributed = alone.logit_attrs(parts, 7, pos_slice=-1, has_batch_dim=False)
    close(attributed.sum(0), run.logits[0, -1, 7])
    with pytest.raises(PointError, match="none to slice"):
        alone.apply_slice_to_batch_dim(0)
    kept = run.theirs.apply_slice_to_batch_dim([0])
    for name in kept:  # a tower's tensors stay where a picture is a row
        assert not name.startswith("vision") or len(kept[name]) == 1, name
    with pytest.raises(AssertionError, match="batch size 2"):
        run.theirs.remove_batch_dim()


def test_pictures_that_are_not_the_rows_own_are_left_out(run):
    """As many pictures as rows, both of them in the first: no row's tensors are the second's."""
    vlm, pictures = run.vlm, [tiny.noise_picture(n, (40, 30)) for n in range(2)]
    shown = vlm.run_with_cache(vlm.prompt(["a<image>b<image>", "c"], [pictures, []]))[1]
    kept = to_cache(shown, vlm, run.theirs.model).apply_slice_to_batch_dim([1])
    assert "blocks.0.hook_resid_pre" in kept and not any("vision" in name for name in kept)
    if vlm.family.name == "llava":  # a picture is a row
        one = run.theirs.apply_slice_to_batch_dim([1])
        shown = next(n for n in one if n.startswith("vision") and n.endswith("0.hook_out"))
        assert torch.equal(one[shown], run.theirs[shown][1:])


def test_tokens_of_rows(run):
    parts = run.theirs.decompose_resid(pos_slice=-1)
    tokens, others = torch.tensor([7, 20]), torch.tensor([9, 4])
    found = run.theirs.logit_attrs(parts, tokens, incorrect_tokens=others, pos_slice=-1).sum(0)
    rows = torch.arange(2)
    close(found, run.logits[rows, -1, tokens] - run.logits[rows, -1, others])


def test_what_a_norm_follows_is_refused(tmp_path):
    vlm = HookedVLM.from_pretrained(tiny_gemma3.save(tmp_path))
    run = Run(vlm, vlm.prompt("a<image>b", [tiny.noise_picture(1, (40, 30))]))
    close(run.theirs.decompose_resid(apply_ln=True).sum(0) @ run.unembed.T, run.logits)
    for refused in (
        run.theirs.stack_head_results, run.theirs.compute_head_results,
        lambda: run.theirs.get_neuron_results(0), lambda: run.theirs.stack_neuron_results(1),
        run.theirs.get_full_resid_decomposition,
    ):  # fmt: skip
        with pytest.raises(PointError, match=r"a norm.*vlm\.decompose"):
            refused()


def test_logits_that_are_scaled(tmp_path):
    made = texts.build("granite")
    made.config.vocab_size = 320  # as many as the tokenizer has
    model = tiny.randomize(type(made)(made.config)).eval()
    assert model.config.logits_scaling != 1
    model.save_pretrained(tmp_path)
    tiny.tokenizer("pieces").save_pretrained(tmp_path)
    vlm = HookedVLM.from_pretrained(tmp_path)
    run = Run(vlm, vlm.prompt("Q:Greece A:"))
    close(run.theirs.logit_attrs(run.theirs.decompose_resid(), 7).sum(0), run.logits[..., 7])
