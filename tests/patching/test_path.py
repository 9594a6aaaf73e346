"""Path patching against three plain hooked runs, and on toy-induction, whose paths are known."""

from __future__ import annotations

import numpy as np
import pytest
from families.every import VLMS
from induction_case import model
from plain_edits import PlainEdit, plain_read, plain_run

from patching.pairs_of_prompts import MEASURE, difference, other_lengths, same_shape
from vlm_lens import All, HookedVLM, Images, Last, LogitDiff, VLMLensError
from vlm_lens.layout.position_map import position_map
from vlm_lens.patching import PatchingError, Receiver, patch_paths
from vlm_lens.zoo.induction import INDUCTION, PREVIOUS

MODELS = ("qwen2_vl", "idefics2", "gemma3", "llava-clip")
Z = "blocks.*.attn.hook_z"


@pytest.fixture(scope="module", params=MODELS)
def vlm(request, tmp_path_factory) -> HookedVLM:
    return VLMS[request.param].load(tmp_path_factory.mktemp(request.param))


class ThreeRuns:
    """Path patching by hand: plain hooks, one run for each step."""

    def __init__(self, vlm, base, source, cells, freeze):
        self.vlm, self.base, self.freeze = vlm, base, freeze
        self.cells, self.all = cells, [(0, p) for p in range(base.length)]
        self.plain = {n: self.read(base, n) for n in self.frozen_names()}
        self.source = lambda name: plain_read(vlm.hf_model, source.inputs, vlm.points()[name])[0]

    def read(self, prompt, name, edits=()):
        return plain_read(self.vlm.hf_model, prompt.inputs, self.vlm.points()[name], edits)[0]

    def frozen_names(self):
        kinds = ["attn.hook_z"] + ["hook_mlp_out"] * (self.freeze == "all")
        return [f"blocks.{i}.{k}" for i in range(self.vlm.cfg.n_layers) for k in kinds]

    def edit(self, name, cells, values, heads=None):
        values = [v if heads is None else v[heads] for v in values]
        return PlainEdit(self.vlm.points()[name], cells, "set", values, heads=heads)

    def sender(self, layer, head):
        """Run 2's changes: all attention behind the sender as it was, MLPs too if so asked."""
        held = [
            self.edit(n, self.all, list(self.plain[n]))
            for n in self.frozen_names()
            if int(n.split(".")[1]) > layer or (n == f"blocks.{layer}.hook_mlp_out")
        ]
        name = f"blocks.{layer}.attn.hook_z"
        given = self.source(name)
        values = [given[p] for _, (_, p) in self.cells]
        return [self.edit(name, [here for here, _ in self.cells], values, [head]), *held]

    def measure(self, edits):
        return difference(plain_run(self.vlm.hf_model, self.base.inputs, edits))

    def path(self, layer, head, point, to_head):
        """Runs 2 and 3, with one between where heads share keys and values."""
        sent = self.sender(layer, head)
        if point == "logits":
            return self.measure(sent)
        received = self.read(self.base, point, sent)
        if to_head is None:
            return self.measure([self.edit(point, self.all, list(received))])
        z = f"{point.rpartition('.')[0]}.hook_z"
        table = self.vlm.points()
        group = table[z].sizes[2] // table[point].sizes[2]
        changed = self.edit(point, self.all, list(received), [to_head // group])
        if group == 1:
            return self.measure([changed])
        mixed = self.read(self.base, z, [changed])
        return self.measure([self.edit(z, self.all, list(mixed), [to_head])])


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ("attention", "all"))
def test_each_path_equals_three_plain_runs(vlm, freeze):
    clean, corrupt = (same_shape if freeze == "all" else other_lengths)(vlm)
    receivers = [
        "logits", "blocks.1.ln2.hook_normalized", "blocks.1.attn.hook_v",
        Receiver("blocks.1.attn.hook_q", 1), Receiver("blocks.1.attn.hook_k", 2),
        Receiver("blocks.1.attn.hook_v", 3),
    ]  # fmt: skip
    options = {"receivers": receivers, "freeze": freeze, "heads": [0, 3], "measure": MEASURE}
    ends = [difference(plain_run(vlm.hf_model, p.inputs, ())) for p in (clean, corrupt)]
    for direction in ("noise", "denoise"):
        found = patch_paths(vlm, clean, corrupt, senders=Z, direction=direction, **options)
        assert found.axes == ("layer", "head", "receiver")
        denoise = direction == "denoise"
        base, source = (corrupt, clean) if denoise else (clean, corrupt)
        cells = [(b, a) if denoise else (a, b) for a, b in
                 position_map(clean.layout, corrupt.layout).cells().items()]  # fmt: skip
        by_hand = ThreeRuns(vlm, base, source, cells, freeze)
        gap = ends[0] - ends[1]
        for layer in (0, 1):
            for head in (0, 3):
                for end in receivers:
                    end = Receiver(end) if isinstance(end, str) else end
                    share = float(found.sel(layer=layer, head=head, receiver=end.label).values)
                    if layer == 1 and end.point.rpartition(".")[2] in ("hook_q", "hook_k",
                                                                       "hook_v"):  # fmt: skip
                        assert np.isnan(share)
                        continue
                    value = by_hand.path(layer, head, end.point, end.head)
                    expected = (value - ends[1]) / gap if denoise else (ends[0] - value) / gap
                    assert share == pytest.approx(expected, abs=5e-4), (layer, head, end)


def test_the_known_path_of_toy_induction_and_no_other():
    vlm = model()
    clean, corrupt = vlm.prompt("x y z q x"), vlm.prompt("z y x q x")
    receivers = [
        "logits",
        *(Receiver(f"blocks.{layer}.attn.hook_{kind}", head)
          for layer in (1, 2) for head in range(3) for kind in "qkv"),
    ]  # fmt: skip
    key = Receiver(f"blocks.{INDUCTION[0]}.attn.hook_k", INDUCTION[1]).label
    for freeze in ("attention", "all"):
        for direction in ("noise", "denoise"):
            found = patch_paths(
                vlm, clean, corrupt, senders=Z, heads="each", receivers=receivers, freeze=freeze,
                direction=direction, measure=LogitDiff(" y", " q"),
            )  # fmt: skip
            through = found.values.fillna(0)
            assert float(through.sel(layer=PREVIOUS[0], head=PREVIOUS[1], receiver=key)) == (
                pytest.approx(1, abs=1e-5)
            )
            assert float(through.sel(layer=INDUCTION[0], head=INDUCTION[1], receiver="logits")) == (
                pytest.approx(1, abs=1e-5)
            )
            assert float(np.abs(through).sum()) == pytest.approx(2, abs=1e-4)  # nothing else


def test_embedding_and_mlps_send_too(clip):
    clean, corrupt = same_shape(clip)
    options = {"measure": MEASURE, "freeze": "all"}
    found = patch_paths(clip, clean, corrupt, senders="blocks.*.hook_mlp_out", **options)
    assert found.axes == ("layer",)
    name = "blocks.1.hook_mlp_out"
    value = clip.run_with_cache(corrupt, names_filter=[name])[1][name]
    logits = clip.run_with_hooks(clean, fwd_hooks=[(name, lambda x, hook: value)])
    ends = [difference(clip.run(p)[0]) for p in (clean, corrupt)]
    expected = (ends[0] - difference(logits[0])) / (ends[0] - ends[1])
    assert float(found.values[1]) == pytest.approx(expected, abs=1e-4)  # nothing comes behind it
    merged = patch_paths(
        clip, clean, corrupt, senders="hook_merged", receivers="blocks.0.attn.hook_q", **options
    )
    name = "blocks.0.attn.hook_q"
    value = clip.run_with_cache(corrupt, names_filter=[name])[1][name]
    logits = clip.run_with_hooks(clean, fwd_hooks=[(name, lambda x, hook: value)])
    expected = (ends[0] - difference(logits[0])) / (ends[0] - ends[1])
    assert float(merged.values) == pytest.approx(expected, abs=1e-4)


def test_places_of_senders_and_receivers(clip):
    clean, corrupt = same_shape(clip)
    options = {"measure": MEASURE, "freeze": "attention", "heads": "each", "senders": Z}
    found = patch_paths(clip, clean, corrupt, at=[Images(), All()], receivers=[
        Receiver("blocks.1.attn.hook_q", 0, Last()), Receiver("blocks.1.attn.hook_q", 0)],
        **options)  # fmt: skip
    assert found.axes == ("layer", "head", "kind", "receiver")
    last = found.sel(receiver="blocks.1.attn.hook_q head 0 at Last()", layer=0)
    assert not np.allclose(last.values, found.sel(
        receiver="blocks.1.attn.hook_q head 0", layer=0).values, atol=1e-6)  # fmt: skip
    small = patch_paths(clip, clean, corrupt, at=[Images(), All()], memory=1, receivers=[
        Receiver("blocks.1.attn.hook_q", 0, Last()), Receiver("blocks.1.attn.hook_q", 0)],
        **options)  # fmt: skip
    assert small.values.to_numpy() == pytest.approx(found.values.to_numpy(), abs=1e-4, nan_ok=True)


def test_what_does_not_fit_is_refused_before_any_run(clip, no_forward):
    clean, corrupt = same_shape(clip)
    no_forward(clip)
    good = {"senders": Z, "freeze": "all", "measure": MEASURE}
    for options, match in (
        ({"freeze": "heads"}, "freeze is 'attention' or 'all'"),
        ({"direction": "up"}, "direction is"),
        ({"senders": "blocks.*.hook_resid_post"}, "is no sender"),
        ({"receivers": "blocks.1.hook_resid_pre"}, "no receiver's input"),
        ({"receivers": Receiver("blocks.1.attn.hook_q", 9)}, "has heads 0..3"),
        ({"receivers": Receiver("blocks.1.ln2.hook_normalized", 0)}, "has no heads"),
        ({"receivers": "blocks.7.attn.hook_q"}, "no point"),
        ({"receivers": []}, "at least one"),
        ({"receivers": ["logits", "logits"]}, "each once"),
    ):
        with pytest.raises(VLMLensError, match=match):
            patch_paths(clip, clean, corrupt, **{**good, **options})
    assert issubclass(PatchingError, VLMLensError)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    vlm = model()
    clean, corrupt = vlm.prompt("x y z q x"), vlm.prompt("z y x q x")
    options = {
        "senders": Z, "heads": "each", "at": "each", "freeze": "all",
        "receivers": ["logits", Receiver("blocks.2.attn.hook_k", 0)],
        "measure": LogitDiff(" y", " q"),
    }  # fmt: skip
    plain = patch_paths(vlm, clean, corrupt, **options)
    done = []

    def killed(spots):
        if done:
            raise KeyboardInterrupt
        done.append(spots)

    from vlm_lens.patching.path import _Paths

    real = _Paths.measured
    with monkeypatch.context() as patched:
        patched.setattr(_Paths, "measured", lambda self, s: (killed(s), real(self, s))[1])
        with pytest.raises(KeyboardInterrupt):
            patch_paths(vlm, clean, corrupt, save=tmp_path / "run", **options)
    kept = list((tmp_path / "run").glob("sender-*"))
    assert len(kept) == len(done[0]) < plain.values.size // 2
    again = patch_paths(vlm, clean, corrupt, save=tmp_path / "run", **options)
    assert again.values.to_numpy() == pytest.approx(plain.values.to_numpy(), abs=1e-6, nan_ok=True)
    monkeypatch.setattr(_Paths, "measured", None)
    third = patch_paths(vlm, clean, corrupt, save=tmp_path / "run", **options)
    assert third.values.identical(again.values)
    with pytest.raises(PatchingError, match="another"):
        patch_paths(vlm, corrupt, clean, save=tmp_path / "run", **options)
