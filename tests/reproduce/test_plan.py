"""What is run for which experiments."""

from __future__ import annotations

from vlm_lens.reproduce import make_plan


def test_what_is_run_on_models_of_the_package_fits_them(tmp_path):
    (plan,) = make_plan(["methods", "table3"], ["toy-llava"], seeds=1, out=tmp_path)
    assert plan.runs["function-vectors"].corruption == "mixed"
    assert plan.runs["inter-model"].source_model == "toy-vicuna"
    assert plan.runs["inter-model"].unrelated_model == "toy-mistral"
    (methods,) = (one for one in plan.experiments if one.id == "methods")
    assert any("leave the task unchanged" in line for line in methods.differs(plan.setup))
