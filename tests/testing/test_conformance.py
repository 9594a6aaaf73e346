"""The suite as a whole: what it is asked, and what it says of models that do not conform."""

from __future__ import annotations

import dataclasses

import pytest

from vlm_lens.errors import ModelError
from vlm_lens.points.table import PointTable
from vlm_lens.testing import conformance
from vlm_lens.testing.conformance import CHECKS


@pytest.mark.parametrize("check", [c for c in CHECKS if "gradients" not in c])
def test_each_check_runs_alone(load, check):
    report = conformance(load("llama"), "Q:Greece\nA:", only=(check,), cold=False)
    assert [r.name for r in report.results] == [check]
    assert report.passed, str(report)


def test_the_check_that_runs_is_shown(load, capfd):
    one = ("every point fires",)
    conformance(load("llama"), "Q:Greece\nA:", only=one)
    assert "every point fires" not in capfd.readouterr().err
    conformance(load("llama"), "Q:Greece\nA:", only=one, progress=True)
    assert "every point fires" in capfd.readouterr().err


def test_a_check_that_does_not_exist(load):
    with pytest.raises(ModelError, match="no check 'gradients'; there are forward equals"):
        conformance(load("llama"), "Q:Greece", only=("gradients",))


def test_a_point_with_another_number_of_axes_is_a_failure(load, monkeypatch):
    vlm = load("clip-llama")
    arch = vlm.architecture
    points = [
        dataclasses.replace(p, axes=("image", "rows", "cols", "d_model"), sizes=(None,) * 4)
        if p.name == "projector.hook_out"
        else p
        for p in arch.points.values()
    ]
    wrong = dataclasses.replace(arch, points=PointTable(points, arch.points.missing))
    monkeypatch.setattr(vlm, "architecture", wrong)
    report = conformance(vlm, "Q:Greece\nA:", only=("every point fires",))
    assert report.passed
    import tiny

    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    report = conformance(vlm, prompt, only=("every point fires",))
    assert "projector.hook_out declares" in report.failures[0].detail
