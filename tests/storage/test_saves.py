"""Every save: what is read after a kill at any operation on files is the old value or the new."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image

from storage.kills import at_every_operation
from vlm_lens import Ablate, ActivationPatch, Last, Steer, TaskVector, VLMLensError
from vlm_lens.dictionaries import Dictionary
from vlm_lens.dictionaries.gallery import Gallery
from vlm_lens.dictionaries.train import _State as TrainingState
from vlm_lens.directions import Direction, Subspace
from vlm_lens.explorer import Explorer
from vlm_lens.figures.feature_gallery import FeatureRow
from vlm_lens.figures.picture_view import PictureView
from vlm_lens.figures.write import write_figure
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.interventions import Intervention, ModelFacts
from vlm_lens.layout.layout import Layout
from vlm_lens.lenses import JacobianLens, TunedLens
from vlm_lens.lenses.jacobian import _Sums as JacobianSums
from vlm_lens.points.point import Point
from vlm_lens.points.sites import OutputSite
from vlm_lens.points.table import PointTable
from vlm_lens.reading.mean import Mean
from vlm_lens.reading.samples import Samples
from vlm_lens.recipes import Result
from vlm_lens.report import write_page
from vlm_lens.scores.scores import Scores
from vlm_lens.serial import FrozenTensor
from vlm_lens.testing.report import Report

P = "blocks.0.hook_resid_post"


FACTS = ModelFacts("m", 2, 3, "abc")


def vector(value):
    return TaskVector(FrozenTensor(torch.full((2, 3), value)), "resid_post", FACTS, at=Last())


def result(value):
    table = pd.DataFrame({"layer": [0, 1], "score": [value, value]})
    return Result(table, {f"only-{value}": table, "other": table * 2}, {"value": value})


def scores(value):
    numbers = xr.DataArray(
        torch.full((2,), value).numpy(), coords={"layer": [0, 1]}, dims=["layer"]
    )
    return Scores(numbers, name=f"a{value}", pictures=(Image.new("L", (1, 1), int(value)),))


def activations(value):
    point = Point(P, ("batch", "pos", "d_model"), (None, None, 3), "", OutputSite(""))
    layout = Layout((5, 6), ("a", "b"), ("text", "text"))
    held = {P: torch.full((1, 2, 3), value)}
    return ActivationCache(held, PointTable([point]), (layout,), source=lambda: FACTS)


def dictionary(value):
    tensors = {"w_enc": torch.full((3, 4), value), "b_enc": torch.zeros(4),
               "w_dec": torch.full((4, 3), value), "b_dec": torch.zeros(3)}  # fmt: skip
    return Dictionary({k: FrozenTensor(t) for k, t in tensors.items()}, P, P)


def lens(kind, value):
    weights = {f"{P}/all": FrozenTensor(torch.full((3, 3), value))}
    return kind(weights=weights, source=FACTS)


def direction(value):
    data = FrozenTensor(torch.full((2, 3), value))
    return Direction(data, "resid_post", FACTS, Last(), "mean", (1.0, 1.0), (value, value))


def jacobian_sums(value):
    sums = JacobianSums([P], ["all"], 3, torch.device("cpu"))
    sums.counts["all"] = int(value)
    for total in sums.sums.values():
        total.fill_(value)
    return sums


def same_sums(one, other):
    return one.counts == other.counts and all(
        torch.equal(one.sums[k], other.sums[k]) for k in one.sums
    )


def loaded_sums(to):
    found = jacobian_sums(0.0)
    found.load(to)
    return found


def training(value):
    weights = {name: torch.full((2, 2), value) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}
    state = TrainingState(weights, torch.tensor(value), torch.zeros(2), 1.0)
    state.step = state.chunk = state.read = int(value)
    return state


def same_training(one, other):
    same = all(torch.equal(one.weights[k], other.weights[k]) for k in one.weights)
    return same and one.scale == other.scale and one.step == other.step


def figure(word):
    import plotly.graph_objects as go

    return go.Figure(go.Bar(x=[word], y=[1]))


def picture_view(word):
    return PictureView(np.zeros(1), (), (), {}, (), (word,), name=word)


@dataclass(frozen=True, eq=False)
class WordExplorer(Explorer):
    """An explorer of no model, whose page is one word."""

    word: str = ""

    @property
    def html(self):
        """The word."""
        return self.word


def in_file(name):
    """Which of two words a file holds."""
    return lambda to: "old" if re.search(r"\bold\b", (to / name).read_text()) else "new"


def same_scores(one, other):
    return (
        one.name == other.name
        and bool((one.values == other.values).all())
        and [p.tobytes() for p in one.pictures] == [p.tobytes() for p in other.pictures]
    )


# name -> old value, new value, how to save it, how to load it
SAVES = {
    "tensors and tensors": (
        Steer(P, Last(), torch.ones(3)), Steer(P, Last(), torch.zeros(3)),
        lambda v, to: v.save(to / "e"), lambda to: Intervention.load(to / "e"),
    ),
    "tensors, then none": (
        ActivationPatch(P, Last(), vector(1.0)), Ablate(P, Last()),
        lambda v, to: v.save(to / "e"), lambda to: Intervention.load(to / "e"),
    ),
    "none, then tensors": (
        Ablate(P, Last()), Steer(P, Last(), torch.ones(3)) + Ablate(P, Last()),
        lambda v, to: v.save(to / "e"), lambda to: Intervention.load(to / "e"),
    ),
    "a vector": (
        vector(1.0), vector(2.0),
        lambda v, to: v.save(to / "v"), lambda to: TaskVector.load(to / "v"),
    ),
    "a result": (
        result(1.0), result(2.0),
        lambda v, to: v.save(to / "r", plotlyjs="p.js"), lambda to: Result.load(to / "r"),
    ),
    "scores": (
        scores(1.0), scores(2.0),
        lambda v, to: v.save(to / "s"), lambda to: Scores.load(to / "s"),
    ),
    "a cache": (
        activations(1.0), activations(2.0),
        lambda v, to: v.save(to / "c"), lambda to: ActivationCache.load(to / "c"),
    ),
    "a dictionary": (
        dictionary(1.0), dictionary(2.0),
        lambda v, to: v.save(to / "d"), lambda to: Dictionary.load(to / "d"),
    ),
    "a dictionary's folder": (
        dictionary(1.0), dictionary(2.0),
        lambda v, to: v.save_pretrained(to / "d"),
        lambda to: dictionary(
            float(Dictionary.from_pretrained(to / "d").tensors["w_enc"].data[0, 0])
        ),
    ),
    "a tuned lens": (
        lens(TunedLens, 1.0), lens(TunedLens, 2.0),
        lambda v, to: v.save(to / "l"), lambda to: TunedLens.load(to / "l"),
    ),
    "a Jacobian lens": (
        lens(JacobianLens, 1.0), lens(JacobianLens, 2.0),
        lambda v, to: v.save(to / "l"), lambda to: JacobianLens.load(to / "l"),
    ),
    "a direction": (
        direction(1.0), direction(2.0),
        lambda v, to: v.save(to / "d"), lambda to: Direction.load(to / "d"),
    ),
    "a mean": (
        Mean({P: FrozenTensor(torch.ones(3))}, FACTS, Last(), {P: 1}),
        Mean({P: FrozenTensor(torch.zeros(3))}, FACTS, Last(), {P: 2}),
        lambda v, to: v.save(to / "m"), lambda to: Mean.load(to / "m"),
    ),
    "samples": (
        Samples({P: FrozenTensor(torch.ones(1, 1, 3))}, FACTS, Last()),
        Samples({P: FrozenTensor(torch.zeros(1, 1, 3))}, FACTS, Last()),
        lambda v, to: v.save(to / "s"), lambda to: Samples.load(to / "s"),
    ),
    "a subspace": (
        Subspace(FrozenTensor(torch.ones(1, 3)), P, Last(), FACTS),
        Subspace(FrozenTensor(torch.zeros(1, 3)), P, Last(), FACTS),
        lambda v, to: v.save(to / "s"), lambda to: Subspace.load(to / "s"),
    ),
    "sums of a fit": (
        jacobian_sums(1.0), jacobian_sums(2.0), lambda v, to: v.save(to, int(v.counts["all"])),
        loaded_sums,
    ),
    "a training": (
        training(1.0), training(2.0),
        lambda v, to: v.save(to / "t"), lambda to: TrainingState.load(to / "t"),
    ),
    "an explorer": (
        "old", "new",
        lambda v, to: WordExplorer((), v).save(to / "e.html"), in_file("e.html"),
    ),
    "a gallery": (
        "old", "new",
        lambda v, to: Gallery(pd.DataFrame(), (FeatureRow(v, "", ()),)).save(to / "g.html"),
        in_file("g.html"),
    ),
    "a view": (
        "old", "new", lambda v, to: picture_view(v).save(to / "v.html"), in_file("v.html"),
    ),
    "a figure": (
        "old", "new", lambda v, to: write_figure(figure(v), to / "f.html"), in_file("f.html"),
    ),
    "a conformance report": (
        "old", "new",
        lambda v, to: Report(v, "family", ()).save_html(to / "r.html"), in_file("r.html"),
    ),
    "a page": (
        "old", "new",
        lambda v, to: write_page(to / "p.html", v, v, []),
        lambda to: "old" if "<title>old</title>" in (to / "p.html").read_text() else "new",
    ),
}  # fmt: skip


SAME = {"scores": same_scores, "sums of a fit": same_sums, "a training": same_training}


@pytest.mark.parametrize("name", SAVES)
def test_old_or_new_wherever_the_process_ends(name, tmp_path):
    old, new, save, load = SAVES[name]
    same = SAME.get(name, lambda a, b: type(a) is type(b) and a == b)
    save(old, tmp_path)
    assert same(load(tmp_path), old)
    seen = []
    for _ in at_every_operation(lambda: save(old, tmp_path), lambda: save(new, tmp_path)):
        found = load(tmp_path)
        seen.append(same(found, new))
        assert seen[-1] or same(found, old)
        assert same(load(tmp_path), found)
    assert not seen[0] and seen == sorted(seen)  # from one operation on it is the new one
    assert same(load(tmp_path), new)


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("code, said", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_disk_that_takes_nothing_is_said_and_the_old_value_stays(
    name, code, said, tmp_path, monkeypatch
):
    old, new, save, load = SAVES[name]
    save(old, tmp_path)
    before = sorted(p for p in tmp_path.rglob("*"))

    def refused(*_):
        raise OSError(code, "no")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refused)
        with pytest.raises(VLMLensError, match=said):
            save(new, tmp_path)
    assert type(load(tmp_path)) is type(old)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_result_is_replaced_without_leftovers_and_other_files_stay(tmp_path):
    result(1.0).save(tmp_path, plotlyjs="p.js")
    (tmp_path / "notes.txt").write_text("mine")
    result(2.0).save(tmp_path, plotlyjs="p.js")
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {
        "table.csv", "only-2.0.csv", "other.csv", "figure.html", "provenance.json", "notes.txt",
    }  # fmt: skip


DAMAGES = {
    "no JSON": lambda f: (f / "provenance.json").write_text("{"),
    "latin-1": lambda f: (f / "provenance.json").write_bytes(b'{"a": "\xe9"}'),
    "a key is missing": lambda f: edit(f, values=None),
    "no main table": lambda f: edit(f, tables={"other": {"layer": "int", "score": "float"}}),
    "a table is gone": lambda f: (f / "other.csv").unlink(),
    "a table is empty": lambda f: (f / "table.csv").write_text(""),
    "a table is cut": lambda f: (f / "table.csv").write_text('"layer","score"\n0,1.0\n1'),
    "another column": lambda f: (f / "table.csv").write_text('"layer","x"\n0,1.0\n'),
    "no number": lambda f: (f / "table.csv").write_text('"layer","score"\n0,abc\n'),
    "a table of bytes": lambda f: (f / "table.csv").write_bytes(b'"layer","score"\n0,\xff\n'),
    "a kind unknown": lambda f: edit(f, tables={"table": {"layer": "date", "score": "float"}}),
}


def edit(folder, **changes):
    about = json.loads((folder / "provenance.json").read_text()) | changes
    about = {k: v for k, v in about.items() if v is not None}
    (folder / "provenance.json").write_text(json.dumps(about))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_said(damage, tmp_path):
    result(1.0).save(tmp_path, plotlyjs="p.js")
    DAMAGES[damage](tmp_path)
    with pytest.raises(VLMLensError, match=r"damaged|cannot be read|no saved result"):
        Result.load(tmp_path)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", "a/b", "a\\b", ".hidden", "", "c:x"])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    table = pd.DataFrame({"layer": [0], "score": [1.0]})
    inner = tmp_path / "inner"
    with pytest.raises(VLMLensError, match="cannot be the name of a file"):
        Result(table, {name: table}).save(inner)
    assert not inner.exists()
    result(1.0).save(inner, plotlyjs="p.js")
    (tmp_path / "out.csv").write_text('"layer","score"\n0,1.0\n')
    kinds = {"layer": "int", "score": "float"}
    edit(inner, tables={"table": kinds, name: kinds})
    with pytest.raises(VLMLensError, match="cannot be the name of a file"):
        Result.load(inner)


def test_a_link_that_leads_out_of_the_folder_is_not_read(tmp_path):
    result(1.0).save(tmp_path / "r", plotlyjs="p.js")
    (tmp_path / "secret.csv").write_text('"layer","score"\n0,1.0\n')
    (tmp_path / "r" / "other.csv").unlink()
    (tmp_path / "r" / "other.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(VLMLensError, match="leads out of"):
        Result.load(tmp_path / "r")


class Outside(Result):
    """A result whose figure has a path for a name."""

    def plots(self):
        """One figure."""
        return {"../figure": super().plots()["figure"]}


def test_a_figure_whose_name_leads_out_is_not_drawn(tmp_path):
    outside = Outside(result(1.0).table)
    with pytest.warns(UserWarning, match="cannot be the name of a file"):
        outside.save(tmp_path / "r", plotlyjs="p.js")
    assert not list(tmp_path.glob("*.html")) and Result.load(tmp_path / "r") == outside


def test_damaged_values_and_vectors_are_said(tmp_path):
    steer = Steer(P, Last(), torch.ones(300))
    for damage in (
        lambda: (tmp_path / "e.safetensors").unlink(),
        lambda: (tmp_path / "e.safetensors").write_bytes(b"\0" * 20),
        lambda: (tmp_path / "e.json").write_text('{"vlm_lens": 1}'),
        lambda: (tmp_path / "e.json").write_bytes(b'{"vlm_lens": 1, "value": "\xff"}'),
        lambda: (tmp_path / "e.json").write_text(
            json.dumps({"vlm_lens": 1, "value": {"type": "Steer", "colour": 1}})
        ),
    ):
        steer.save(tmp_path / "e")
        damage()
        with pytest.raises(VLMLensError):
            Intervention.load(tmp_path / "e")
    path = vector(1.0).save(tmp_path / "v")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VLMLensError, match="not a safetensors file"):
        TaskVector.load(path)


def test_every_kind_of_column_comes_back(tmp_path):
    table = pd.DataFrame(
        {
            "mixed": [1, "a", None, 2.5, True],
            "lists": [[1, 2], [], ["a"], None, [[1.5]]],
            "gaps": ["a", None, "", "NA", "null"],
            "small": pd.array([1, 2, 3, 4, 5], dtype="uint8"),
            "half": pd.array([0.5] * 5, dtype="float32"),
        }
    )
    saved = Result(table, values={"a": [1, 2.5, None], "b": {"c": "é"}}, notes=("n",))
    again = Result.load(saved.save(tmp_path))
    assert again == saved and hash(again) == hash(saved)
    assert again.table["gaps"].tolist() == ["a", None, "", "NA", "null"]
    other = Result(table.assign(mixed=[1, "a", None, 2.5, False]), values=saved.values)
    assert other != saved and saved != "a result"
    with pytest.raises(VLMLensError, match="cannot be saved"):
        Result(table, values={"t": torch.ones(1)}).save(tmp_path)
    with pytest.raises(VLMLensError, match="'x' cannot be saved"):
        Result(pd.DataFrame({"x": [object()]})).save(tmp_path)
    assert Result.load(tmp_path) == saved
