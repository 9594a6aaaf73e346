"""On a GPU every method says what it says on the CPU, and files go from one to the other."""

from __future__ import annotations

import pytest
import torch
from families import bench, videos
from patching.pairs_of_prompts import TOKENS, same_shape
from typer.testing import CliRunner

from gpu import stand_in
from gpu.same import same
from vlm_lens import (
    ActivationCache,
    ActivationPatch,
    AttentionKnockout,
    HookedVLM,
    Images,
    Intervention,
    Last,
    LogitLens,
    Pair,
    RawPrompt,
    Steer,
    TaskVector,
)
from vlm_lens.attention.summary import on_patches
from vlm_lens.cli import app
from vlm_lens.dictionaries import Dictionary
from vlm_lens.directions import Counterfactual, Direction, das
from vlm_lens.engine.joint import _refused
from vlm_lens.lenses import Bank, JacobianLens, LatentLens, TunedLens
from vlm_lens.pairs import Pairs
from vlm_lens.probes import ProbeSet, probe
from vlm_lens.reading.resampled import patch_weights
from vlm_lens.tasks import localise

RESID, Z = "blocks.1.hook_resid_post", "blocks.*.attn.hook_z"
TEXTS = [f"Q:{a}{b}\nA:" for a in "abcd" for b in "efgh"]


@pytest.fixture(scope="module", params=["llava-clip", "idefics2", "qwen2_vl"])
def both(request, twins):
    """Grouped heads, a resampler, positions in three dimensions."""
    return twins(request.param)


@pytest.fixture(scope="module")
def llava(twins):
    return twins("llava-clip")


def shown(vlm: HookedVLM, seed: int = 0):
    return vlm.prompt("Q:<image>\nA:", [bench.noise((48, 40), seed=seed)])


def test_logit_lens(both):
    same(*(LogitLens().run(vlm, shown(vlm)).scores("kl") for vlm in both))


def test_layers_that_are_joined(both):
    found = []
    for vlm in both:
        prompt = shown(vlm)
        _, cache = vlm.run_with_cache(prompt)
        parts = cache.decompose_resid()
        found.append({
            "stack": cache.stack("resid_post"),
            "streams": cache.accumulated_resid(apply_ln=True),
            "before a block": cache.accumulated_resid(1, incl_mid=True, apply_ln=True),
            "heads": cache.stack_head_results(incl_remainder=True, apply_ln=True),
            "logits": cache.logit_attrs(parts, 7, 9),
            "sources": vlm.decompose(prompt, token=7, by="source"),
        })  # fmt: skip
    same(*found)


def test_a_tower_taken_apart(llava):
    for by in ("component", "source"):
        same(*(vlm.decompose(shown(vlm), token=7, part="vision", by=by) for vlm in llava))


def test_sweeps_run_in_the_run_itself(both):
    """That they do not is no error, so it is looked for."""
    for vlm in both:
        vlm.sweep(shown(vlm), [Steer(RESID, Last(), torch.ones(vlm.cfg.d_model))], progress=False)
        assert vlm.hf_model not in _refused or not any(_refused[vlm.hf_model].values())


def test_fitted_lenses(llava, tmp_path):
    prompts = [RawPrompt(f"{t}<image>", (bench.noise((48, 40), seed=n),))
               for n, t in enumerate(TEXTS[:6])]  # fmt: skip
    options = {"steps": 3, "lr": 1e-2, "batch_size": 3, "positions": 8, "progress": False}
    found = []
    for name, vlm in zip(("near", "far"), llava, strict=True):
        tuned = TunedLens.fit(vlm, prompts, kinds="each", save=tmp_path / name, **options)
        tuned.save(tmp_path / f"{name}-tuned")
        jacobian = JacobianLens.fit(vlm, prompts[:2], progress=False)
        bank = Bank.build(vlm, TEXTS[:4], tmp_path / f"{name}-bank", progress=False)
        lenses = (tuned, jacobian, LatentLens(bank=bank))
        found.append([lens.run(vlm, shown(vlm)).scores("entropy") for lens in lenses[:2]])
        found[-1].append(lenses[2].run(vlm, shown(vlm)).to_dataframe().select_dtypes("number"))
    same(*found)
    crossed = TunedLens.load(tmp_path / "far-tuned").run(llava.near, shown(llava.near))
    same(crossed.scores("entropy"), found[1][0])


def test_pairs(both):
    found = []
    for vlm in both:
        pair = Pair(*same_shape(vlm), *TOKENS)
        given = {"at": [Images(), Last()], "progress": False}
        here = {
            "patch": pair.patch(vlm, Z, heads="each", **given),
            "resid": pair.patch(vlm, "blocks.*.hook_resid_post", **given),
            "paths": pair.patch_paths(vlm, Z, receivers=["logits", "blocks.1.attn.hook_v"],
                                      at=Last(), freeze="all", heads=[1], progress=False),
            "edges": pair.edges(vlm),
            "circuit": [pair.edges(vlm).circuit(12).faithfulness(vlm)],
        }  # fmt: skip
        for method in ("gradient", "ig"):
            here[method] = pair.attribute(vlm, Z, method=method)
        found.append(here)
    same(*found)


def test_many_pairs_kept_in_a_folder(llava, tmp_path):
    found = []
    for name, vlm in zip(("near", "far"), llava, strict=True):
        prompts = [vlm.prompt(f"Q:<image>{w}\nA:", [bench.noise((32, 48), seed=n)])
                   for n, w in enumerate(("Peru", "Lima", "Peru", "Lima"))]  # fmt: skip
        twos = zip(prompts[::2], prompts[1::2], strict=True)
        pairs = Pairs(tuple(Pair(a, b, *TOKENS) for a, b in twos), "two", 0)
        options = {"at": Last(), "save": tmp_path / name, "progress": False}
        found.append(pairs.patch(vlm, Z, **options))
        same(found[-1], pairs.patch(vlm, Z, **options), "read again")
    same(*found)


def test_dictionaries(llava, tmp_path):
    prompts = [RawPrompt(text) for text in TEXTS]
    made, found = [], []
    for name, vlm in zip(("near", "far"), llava, strict=True):
        dictionary = Dictionary.train(
            vlm, prompts, "blocks.0.hook_resid_post", n_features=40, k=4, places=600, batch=100,
            buffer=300, batch_size=8, seed=0, save=tmp_path / name, progress=False,
        )  # fmt: skip
        made.append(dictionary)
        dictionary = made[0]
        edits = [dictionary.splice(), dictionary.splice(error=False), dictionary.ablate([1, 2]),
                 dictionary.clamp(3, 2.0), dictionary.steer(3, 2.0)]  # fmt: skip
        found.append({
            "features": dictionary.features(vlm, shown(vlm)),
            "edits": [vlm.run(shown(vlm), interventions=edit) for edit in edits],
            "fidelity": dictionary.fidelity(vlm, prompts[:4]).table.select_dtypes("number"),
        })  # fmt: skip
    same(*found)
    same(*({n: t for n, t in sorted(vars(d.coder).items()) if isinstance(t, torch.Tensor)}
           for d in made))  # fmt: skip


def test_probes_and_directions(llava):
    rows = [(t, "abcd".index(t[2]) % 2, t[2]) for t in TEXTS]
    examples = ProbeSet(*zip(*rows, strict=True), "letters")
    counted = [Counterfactual(a, b, "c") for a, b in zip(TEXTS[:12], TEXTS[4:], strict=False)]
    found = []
    for vlm in llava:
        direction = Direction.fit(vlm, TEXTS[:4], TEXTS[4:8], at=Last())
        aligned = das(vlm, counted, RESID, k=2, steps=2, progress=False)
        _, cache = vlm.run_with_cache(TEXTS[0], names_filter=RESID)
        found.append([
            direction.values, direction.scores(vlm, shown(vlm)),
            probe(vlm, examples, folds=2, controls=1, at={"last": Last()}).accuracy,
            vlm.run(shown(vlm), interventions=aligned.subspace.interchange(cache, at=Last())),
        ])  # fmt: skip
    same(*found)


def test_a_resamplers_latents_over_patches(twins):
    both = twins("idefics2")
    found = []
    for vlm in both:
        prompt = shown(vlm)
        _, cache = vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")
        weights = patch_weights(cache)
        spread = on_patches(vlm.attention(prompt), {0: weights})
        positions = prompt.layout.image[0].positions
        scores = torch.arange(1.0, len(positions) + 1, device=vlm.device)
        assert localise(scores, positions, positions[:2]).rank == len(positions) - 2
        found.append((weights, spread))
    same(*found)


def test_files_go_from_one_device_to_the_other(llava, tmp_path):
    near, far = llava
    vector = TaskVector.read(far, TEXTS[:2], at=Last())
    vector.save(tmp_path / "vector")
    same(TaskVector.read(near, TEXTS[:2], at=Last()).layer(1),
         TaskVector.load(tmp_path / "vector").layer(1))  # fmt: skip
    edit = Steer(RESID, Last(), torch.ones(near.cfg.d_model, device=far.device))
    edit.save(tmp_path / "edit")
    assert Intervention.load(tmp_path / "edit") == edit
    assert edit == Steer(RESID, Last(), torch.ones(near.cfg.d_model))
    _, cache = far.run_with_cache(shown(far), names_filter=RESID)
    again = ActivationCache.load(cache.save(tmp_path / "cache"))
    same(cache[RESID], again[RESID])
    patch = ActivationPatch(RESID, Last(), again)
    same(*(vlm.run(TEXTS[0], interventions=patch) for vlm in llava))
    for name, vlm in zip(("near", "far"), llava, strict=True):
        swept = vlm.sweep(TEXTS[0], [edit, patch], measure="logits", save=tmp_path / name,
                          progress=False)  # fmt: skip
        again = vlm.sweep(TEXTS[0], [edit, patch], measure="logits", save=tmp_path / name,
                          progress=False)  # fmt: skip
        same(swept.stack("logits"), again.stack("logits"))


def test_many_prompts(llava, tmp_path):
    patch = ActivationPatch("blocks.*.hook_resid_post", Last(), 0.3).each_layer()
    found = []
    for name, vlm in zip(("near", "far"), llava, strict=True):
        many = vlm.sweep(TEXTS[:5], patch, batch_size=2, measure="logits", progress=False,
                         save=tmp_path / name)  # fmt: skip
        found.append(many.stack("logits"))
    same(*found)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_videos(twins, name):
    found = []
    for vlm in twins(name):
        frames = [bench.noise((24, 16), seed=n) for n in range(4)]
        tensors = videos.packed(vlm, frames, apart=name == "qwen3_vl")
        prompt = vlm.as_prompt(tensors)
        names = ["projector.hook_out", RESID]
        logits, cache = vlm.run_with_cache(prompt, names_filter=names)
        found.append([logits, *(cache[n] for n in names)])
    same(*found)


def test_functions_of_the_user(llava):
    found = []
    for vlm in llava:
        hooks = [
            (RESID, lambda x, hook: x * 0.5),
            ("blocks.0.attn.hook_pattern", lambda x, hook: x),
        ]
        seen = []
        with vlm.hooks([(RESID, lambda x, hook, seen=seen: seen.append(x.device))]):
            logits = vlm.run_with_hooks(shown(vlm), fwd_hooks=hooks)
        assert seen == [vlm.device]
        found.append(logits)
    same(*found)


def test_moved_after_it_was_made(llava, device, tmp_path):
    vlm = HookedVLM(llava.near.hf_model, llava.near.processor)
    other = HookedVLM.from_pretrained(str(llava.near.hf_model.config._name_or_path))
    other.hf_model.to(device)
    assert other.device == torch.device(device)
    same(vlm.run(shown(vlm)), other.run(shown(other)))
    same(vlm.run(shown(vlm)), other.run(dict(shown(vlm).inputs)), "a prompt of the CPU")


def test_the_host_waits_once_for_a_knockout(llava, device):
    """To see that no query is left without a key."""
    if not device.startswith(stand_in.NAME):
        pytest.skip("waits are counted on the stand-in")
    vlm, counts = llava.far, []
    for change in ((), AttentionKnockout(Last(), [0, 1], layers=[0])):
        stand_in.waits.clear()
        vlm.run(TEXTS[0], interventions=change)
        counts.append(stand_in.waits.total())
    assert counts[1] == counts[0] + 1


@pytest.mark.slow
def test_the_demo(device, tmp_path):
    options = ["--device", device, "--tasks", "food-color", "--rows", "8", "--seeds", "1"]
    told = CliRunner().invoke(app, ["demo", *options, "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert f"--device {device}" in (tmp_path / "report.html").read_text()
