from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from differential import assert_captured_alike, assert_close_records, captured

from vlm_lens import Ablate, ActivationPatch, HookedVLM, Images, Last, Patches, Steer, VLMLensError
from vlm_lens.measures import GeneratedTokens, TokenScores
from vlm_lens.sweep import Grid, Variant
from vlm_lens.sweep.run import sweep as run_sweep

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
PATCH = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=VECTOR)


def test_order_labels_and_values_are_those_of_single_runs(vlm, picture):
    prompt = vlm.prompt(["<image>Q:Greece\nA:", "A:"], [picture])
    edits = [
        Steer("blocks.1.hook_attn_out", at=Last(), vector=VECTOR),
        ActivationPatch("blocks.0.hook_resid_pre", at=Last(), value=VECTOR),
        Ablate("blocks.1.hook_mlp_out", at=-2),
    ]
    result = vlm.sweep(prompt, edits, progress=False)
    table = result.to_dataframe()
    assert list(table["layer"]) == [1, 1, 0, 0, 1, 1]
    assert list(table["row"]) == [0, 1] * 3
    for i, edit in enumerate(edits):
        probs = vlm.run(prompt, interventions=edit)[:, -1].softmax(-1)
        for row in range(2):
            record = result.records[2 * i + row]
            assert record["token_id"] == int(probs[row].argmax())
            assert record["prob"] == pytest.approx(float(probs[row].max()), rel=1e-4)


@pytest.mark.parametrize("n_new", (1, 4))
def test_generated_tokens_continue_from_each_row(model, picture, n_new):
    pictures = model.cfg.vision is not None
    texts = ["Q:Greece\nA:", "What is the capital?"]
    prompt = model.prompt(
        ["<image>" * pictures + t for t in texts], [picture] * 2 if pictures else None
    )
    result = model.sweep(prompt, PATCH.each_layer(), measure=GeneratedTokens(n_new), progress=False)
    assert set(result.engines) == {"replay"}
    for layer in range(model.cfg.n_layers):
        edit = ActivationPatch(f"blocks.{layer}.hook_resid_post", at=Last(), value=VECTOR)
        expected = model.generate(prompt, max_new_tokens=n_new, interventions=edit).tokens
        for row in range(2):
            found = result.records[2 * layer + row]["tokens"]
            assert found == expected[row].tolist()[: len(found)]
            assert len(found) == expected.shape[1]


def test_memory_limit_changes_chunks_not_results(clip, picture):
    prompt = clip.prompt("<image>Q:Greece\nA:", [picture])
    grid = Grid(
        "blocks.*.hook_resid_post", at=range(prompt.length - 6, prompt.length), vectors=VECTOR
    )
    small = clip.sweep(prompt, grid, measure="logits", memory=1, progress=False)
    large = clip.sweep(prompt, grid, measure="logits", memory=10**9, progress=False)
    assert len(small) == 6 * clip.cfg.n_layers
    assert torch.allclose(small.stack("logits"), large.stack("logits"), atol=1e-4)


def test_token_scores_and_functions(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    token = 17
    scores = clip.sweep(prompt, PATCH.each_layer(), measure=TokenScores((token,)), progress=False)
    own = clip.sweep(prompt, PATCH.each_layer(), measure=lambda x: x[token], progress=False)
    for a, b in zip(scores.records, own.records, strict=True):
        assert a["logit(17)"] == pytest.approx(b["value"])


def test_captured_activations_are_those_of_full_runs(clip, picture):
    prompt = clip.prompt(["<image>Q:Greece\nA:", "<image>A:"], [[picture], [picture]])
    names = tuple(n for n, p in clip.points().items() if p.space == "text")
    edits = [
        *(ActivationPatch(f"blocks.{i}.hook_resid_post", at=Last(), value=VECTOR) for i in (0, 1)),
        ActivationPatch("blocks.1.hook_resid_pre", at=-3, value=VECTOR),
        ActivationPatch("hook_merged", at=-2, value=VECTOR)
        + Steer("blocks.0.hook_resid_pre", at=-2, vector=VECTOR),
        Steer("blocks.0.hook_attn_out", at=Images(), vector=VECTOR),
        Ablate("ln_final.hook_normalized", at=Last()) + Ablate("hook_logits", at=-2),
    ]
    replayed, full = captured(clip, prompt, edits, names, [-1, -3, -2])
    assert_captured_alike(replayed, full)
    moved = (
        replayed.stack("blocks.1.hook_resid_mid") - replayed.baseline[0]["blocks.1.hook_resid_mid"]
    )
    assert moved[0].abs().max() > 1e-3 and replayed.records[2]["at"] == repr(Last())


def test_captured_activations_of_tower_variants(clip, picture):
    prompt = clip.prompt("<image>Q:<image>\nA:", [picture, tiny.noise_picture(3)])
    names = tuple(n for n, p in clip.points().items() if p.space != "text")
    edits = [
        Ablate("vision.blocks.1.attn.hook_z", at=Images(1), heads=[0]),
        Steer("projector.hook_out", at=Images(0), vector=VECTOR),
        ActivationPatch("blocks.0.hook_resid_post", at=Last(), value=VECTOR),
    ]
    assert_captured_alike(*captured(clip, prompt, edits, names, [2, 0]))
    text = ("blocks.*.hook_resid_post", "hook_merged", "blocks.*.attn.hook_pattern")
    at = Patches(1, rows=0)
    assert_captured_alike(*captured(clip, prompt, edits, text, at))


def test_contexts_around_a_sweep_count(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    outer = Ablate("blocks.0.hook_mlp_out", at=Last())
    with clip.intervening(outer):
        result = clip.sweep(prompt, PATCH.each_layer(), measure="logits", progress=False)
    assert "full" in result.engines and result.reasons
    inner = ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=VECTOR)
    by_hand = clip.run(prompt, interventions=[outer, inner])[:, -1]
    torch.testing.assert_close(result.stack("logits")[1], by_hand, rtol=1e-5, atol=1e-5)


def test_bad_sweeps_are_refused_before_any_forward(clip, no_forward):
    prompt = clip.prompt("Q:Greece\nA:")
    no_forward(clip)
    for wrong, match in (
        ([], "nothing to sweep"),
        ([3], "takes interventions"),
        ([PATCH, ActivationPatch("blocks.9.hook_resid_post", Last(), VECTOR)], "no point"),
        ([ActivationPatch("blocks.0.hook_resid_post", 500, VECTOR)], "not in this prompt"),
    ):
        with pytest.raises(VLMLensError, match=match):
            clip.sweep(prompt, wrong, progress=False)
    with pytest.raises(VLMLensError, match="engine"):
        clip.sweep(prompt, PATCH, engine="fast", progress=False)
    with pytest.raises(VLMLensError, match="no measure"):
        clip.sweep(prompt, PATCH, measure="top2", progress=False)


def test_an_interruption_keeps_what_is_finished(clip, monkeypatch):
    prompt = clip.prompt("Q:Greece\nA:")
    seen = []

    def measure(logits):
        seen.append(logits)
        if len(seen) == 4:  # the plain run, then three variants of one row
            raise KeyboardInterrupt
        return float(logits[0])

    grid = Grid("blocks.*.hook_resid_post", at=[-1, -2], vectors=VECTOR)
    result = clip.sweep(prompt, grid, measure=measure, memory=1, progress=False)
    assert not result.complete and "interrupted" in repr(result)
    assert 0 < len(result) < 2 * clip.cfg.n_layers


def test_save_resumes_and_refuses_another_sweep(clip, tmp_path, monkeypatch):
    prompt = clip.prompt("Q:Greece\nA:")
    folder = tmp_path / "sweep"
    plain = clip.sweep(prompt, PATCH.each_layer(), progress=False)
    first = clip.sweep(prompt, PATCH.each_layer(), save=folder, memory=1, progress=False)
    assert_close_records(first.records, plain.records)  # other chunks: another computation
    chunks = sorted(folder.glob("chunk-*.safetensors"))
    assert len(chunks) == clip.cfg.n_layers
    chunks[0].unlink()
    again = clip.sweep(prompt, PATCH.each_layer(), save=folder, progress=False)
    assert_close_records(again.records, plain.records)
    assert again.records[1:] == first.records[1:] and sum(again.engines.values()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(type(clip.hf_model), "forward", None)  # nothing is left to run
        complete = clip.sweep(prompt, PATCH.each_layer(), save=folder, progress=False)
    assert complete.records == again.records and not complete.engines
    assert_close_records(complete.baseline, plain.baseline)
    for other in (
        lambda: clip.sweep(clip.prompt("Q:Peru\nA:"), PATCH.each_layer(), save=folder),
        lambda: clip.sweep(prompt, (PATCH + PATCH), save=folder),
        lambda: clip.sweep(prompt, PATCH.each_layer(), measure=[1], save=folder),
        lambda: HookedVLM(tiny.build("clip-llama", seed=1), clip.processor).sweep(
            prompt.inputs, PATCH.each_layer(), save=folder
        ),
    ):
        with pytest.raises(VLMLensError, match="another"):
            other()


_KILLED = """
import json, os, signal
import tiny, torch
from vlm_lens import ActivationPatch, HookedVLM, Last
torch.set_num_threads(1)
model = tiny.build("clip-llama", decoder={{"num_hidden_layers": 6}})
vlm = HookedVLM(model, tiny.reader("clip-llama"))
prompt = vlm.prompt("Q:Greece\\nA:")
count = 0
def measure(logits):
    global count
    count += 1
    if os.environ.get("KILL") and count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(logits[0])
patch = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=1.0)
for folder in {folders!r}:
    result = vlm.sweep(prompt, patch.each_layer(),
        measure=measure, save=folder, memory=1, progress=False)
    print(json.dumps([[r["value"] for r in result.records], dict(result.engines)]))
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_same_result(tmp_path):
    def run(*folders: Path, kill: bool) -> subprocess.CompletedProcess:
        code = _KILLED.format(folders=[*map(str, folders)])
        env = (
            os.environ | ({"KILL": "1"} if kill else {}) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        )
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)

    killed = run(tmp_path / "a", kill=True)
    assert killed.returncode == -9
    finished = len(list((tmp_path / "a").glob("chunk-*.safetensors")))
    assert 0 < finished < 6
    said = run(tmp_path / "a", tmp_path / "b", kill=False).stdout.splitlines()
    (resumed, engines), (whole, _) = map(json.loads, said[-2:])
    assert resumed == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert sum(engines.values()) == 6 - finished


def test_the_method_and_the_function_are_one(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    assert (
        clip.sweep(prompt, PATCH.each_layer(), progress=False).records
        == run_sweep(clip, prompt, PATCH.each_layer(), progress=False).records
    )


def test_variants_that_change_nothing_are_the_plain_run(clip, picture):
    prompt = clip.prompt(["<image>A:", "<image>Q:Peru\nA:"], [[picture], [picture]])
    single = ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=VECTOR)
    together = [single, Steer("blocks.0.hook_attn_out", at=Last(), vector=VECTOR)]
    plain = clip.run(prompt)[:, -1].softmax(-1)
    for measure in ("top1", GeneratedTokens(2)):
        for variants in ([(), single, None, together], [()]):
            swept = clip.sweep(prompt, variants, measure=measure, progress=False)
            assert len(swept) == 2 * len(variants)
            for i, variant in enumerate(variants):
                alone = clip.sweep(prompt, [variant], measure=measure, progress=False)
                mine = [{k: v for k, v in r.items()} for r in swept.records[2 * i : 2 * i + 2]]
                assert_close_records(
                    [{k: r[k] for k in ("row", *_measured(alone))} for r in mine],
                    [{k: r[k] for k in ("row", *_measured(alone))} for r in alone.records],
                )
                if measure == "top1" and not variant:
                    assert [r["token_id"] for r in mine] == plain.argmax(-1).tolist()
                    assert [r["prob"] for r in mine] == pytest.approx(plain.amax(-1).tolist())
    nothing = [()] * 3
    full = clip.sweep(prompt, nothing, engine="full", progress=False)
    assert full.engines == {"plain run": 3} and not full.reasons
    assert "3 by plain run" in repr(full)


def _measured(result) -> list[str]:
    return [c for c in result.columns if c not in (*result.label_names, "row")]


def test_labels_that_are_columns_are_refused(clip, no_forward):
    prompt = clip.prompt("Q:Greece\nA:")
    edit = ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=VECTOR)
    own = clip.sweep(prompt, [Variant(edit, {"value": 1})], progress=False)
    assert own.records[0]["value"] == 1
    seen = []
    with pytest.raises(VLMLensError, match="'value' of a variant is also a column"):
        clip.sweep(
            prompt, [Variant(edit, {"value": 1})], measure=lambda x: seen.append(x) or 0.5,
            progress=False,
        )  # fmt: skip
    assert len(seen) == 1  # a function's columns are known after the plain run, before any variant
    no_forward(clip)
    for labels, measure in (
        ({"prob": 0}, "top1"), ({"row": 0}, "top1"), ({"logit(3)": 0, "rank(3)": 1}, [3]),
        ({"text": 0}, GeneratedTokens(1)),
    ):  # fmt: skip
        with pytest.raises(VLMLensError, match="also a column of the result"):
            clip.sweep(prompt, [Variant(edit, labels)], measure=measure, progress=False)


def test_each_variant_is_lowered_once(clip, picture, monkeypatch):
    prompt = clip.prompt("<image>Q:Greece\nA:", [picture])
    seen = []
    lower = ActivationPatch.lower
    monkeypatch.setattr(
        ActivationPatch, "lower", lambda self, target: seen.append(self) or lower(self, target)
    )
    grid = Grid("blocks.*.hook_resid_post", at=[Images(), *range(-6, 0)], vectors=VECTOR)
    result = clip.sweep(prompt, grid, progress=False)
    assert result.engines == {"replay": len(result)} and len(seen) == len(result)
