"""A recipe of one's own: fields checked, provenance kept, progress shown or not."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm_lens import Find, Images, TaskVector
from vlm_lens.prompts.template import Template
from vlm_lens.recipes import Control, Recipe, RecipeError, Result
from vlm_lens.recipes.base import plain, versions
from vlm_lens.tasks import Task


# What a user types, in full.
@dataclass(frozen=True)
class VectorNorm(Recipe):
    task: str
    layers: tuple[int, ...] = (0, 1)
    seed: int = 1

    def measure(self, vlm):
        task = Task.load(self.task)
        prompts = task.example_sets("text", seed=self.seed)[:4]
        rows = []
        for layer in self.progress(self.layers, "norms"):
            vector = TaskVector.read(vlm, prompts, at=Find(":", -3))
            rows.append((layer, float(vector.layer(layer).norm())))
        return pd.DataFrame(rows, columns=["layer", "norm"])


@dataclass(frozen=True)
class Typed(Recipe):
    mode: Literal["a", "b"] = "a"
    scale: float = 1.0
    seeds: int | tuple[int, ...] = 3

    def validate(self):
        if self.scale < 0:
            raise RecipeError(f"Typed.scale is {self.scale}; it cannot be negative.")

    def measure(self, vlm):
        return 3


def test_a_recipe_of_one_method_runs_prints_plots_and_saves(toy, tmp_path):
    result = VectorNorm("country-capital").run(toy, progress=False)
    assert type(result) is Result
    assert list(result.to_dataframe().columns) == ["layer", "norm"]
    assert (result.table["norm"] > 0).all()
    assert "VectorNorm on toy-llava" in repr(result)
    figure = result.plot()
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.layout.yaxis.title.text == "norm"
    again = Result.load(result.save(tmp_path / "out"))
    pd.testing.assert_frame_equal(again.table, result.table)
    assert again.provenance == result.provenance


def test_provenance_holds_what_another_run_needs(toy):
    import torch
    import transformers

    import vlm_lens

    about = VectorNorm("food-color", layers=(0,), seed=7).run(toy, progress=False).provenance
    assert about["recipe"] == {
        "class": "VectorNorm", "model": None, "task": "food-color", "layers": [0], "seed": 7,
    }  # fmt: skip
    assert about["seeds"] == [7]
    assert about["model"]["name"] == "toy-llava"
    assert about["model"]["dtype"] == "float32" and about["model"]["device"] == "cpu"
    assert about["versions"]["torch"] == str(torch.__version__)
    assert about["versions"]["transformers"] == transformers.__version__
    assert about["versions"]["vlm_lens"] == vlm_lens.__version__
    assert about["seconds"] >= 0 and about["date"].endswith("+00:00")
    json.dumps(about)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mode": "c"}, "Typed.mode"),
        ({"scale": "1"}, "Typed.scale"),
        ({"scale": True}, "Typed.scale"),
        ({"scale": -1.0}, "Typed.scale"),
        ({"seeds": (1, "2")}, "Typed.seeds"),
        ({"seeds": [1, "2"]}, r"Typed.seeds .* a valid integer \(entry 1\)"),
        ({"model": 3}, "Typed.model"),
    ],
)
def test_a_wrong_field_is_named_when_the_recipe_is_made(fields, name):
    with pytest.raises(RecipeError, match=name):
        Typed(**fields)


def test_a_field_may_be_a_dataclass_of_the_package():
    @dataclass(frozen=True)
    class OfTask(Recipe):
        task: Task

        def measure(self, vlm):
            return pd.DataFrame({"rows": [len(self.task.test)]})

    OfTask.__annotations__ |= {"task": Task, "model": str | None}  # named within a function
    task = Task.load("country-capital")
    assert OfTask(task).task is task
    with pytest.raises(RecipeError, match=r"OfTask\.task .*an instance of Task"):
        OfTask("country-capital")


def test_a_list_stands_for_a_tuple_and_numpy_s_numbers_for_python_s():
    typed = Typed(seeds=[np.int64(1), 2], scale=np.float32(0.5))
    assert typed == Typed(seeds=(1, 2), scale=0.5) and hash(typed) == hash(typed)
    assert type(typed.seeds[0]) is int and type(typed.scale) is float
    json.dumps(typed.to_dict())


def test_fields_are_checked_again_before_anything_is_computed(toy, no_forward):
    recipe = VectorNorm("country-capital")
    object.__setattr__(recipe, "seed", "one")
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"VectorNorm\.seed is 'one'; it must be a valid integer"):
        recipe.run(toy)


def test_a_recipe_is_frozen_and_comparable():
    assert VectorNorm("x") == VectorNorm("x")
    assert hash(VectorNorm("x")) == hash(VectorNorm("x"))
    with pytest.raises(FrozenInstanceError):
        VectorNorm("x").seed = 2


def test_no_model_or_two_are_errors(toy):
    with pytest.raises(RecipeError, match="no model to run on"):
        VectorNorm("country-capital").run()
    with pytest.raises(RecipeError, match=r"VectorNorm\.model is 'toy-vicuna'"):
        VectorNorm("country-capital", model="toy-vicuna").run(toy)


def test_the_model_that_the_recipe_names_is_loaded():
    result = VectorNorm("food-color", layers=(0,), model="toy-llava").run(progress=False)
    assert result.provenance["model"]["name"] == "toy-llava"


def test_measure_must_give_a_table(toy):
    with pytest.raises(RecipeError, match="measure returned a int"):
        Typed().run(toy)


def test_progress_is_shown_only_when_asked(toy, capfd):
    VectorNorm("food-color").run(toy, progress=False)
    assert capfd.readouterr().err == ""
    VectorNorm("food-color").run(toy)
    assert "norms" in capfd.readouterr().err
    list(VectorNorm("food-color").progress([1], "outside a run"))
    assert capfd.readouterr().err == ""


def test_a_task_of_ones_own_is_noted_by_content(toy):
    from vlm_lens.recipes import PhaseAnalysis

    rows = [(f"name {i}", None, "yes") for i in range(8)]
    task = Task.from_rows("mine", rows, instruction="Say:", validation=4, task_word="word")
    noted = PhaseAnalysis(task).to_dict()["task"]
    assert noted["task"] == "mine" and noted["rows"] == 8 and len(noted["digest"]) == 16


def judged(case):
    return "both"


def test_a_task_is_told_by_everything_that_numbers_depend_on():
    task = Task.load("food-color")
    task = replace(task, validation=task.validation[:3], test=task.test[:3])
    first, *rest = task.test
    dark = Image.new("RGB", (4, 4))
    light = Image.new("RGB", (4, 4), "white")
    others = [
        replace(task, instruction="Say:"),
        replace(task, task_word="tint"),
        replace(task, domain="things"),
        replace(task, template=Template(example="I:{input}\nO:{output}\n", query="I:{input}\nO:")),
        replace(task, validation=task.test, test=task.validation),
        replace(task, test=(replace(first, description="round and red"), *rest)),
        replace(task, test=(replace(first, aliases=("pink",)), *rest)),
        replace(task, test=(replace(first, picture=dark), *rest)),
        replace(task, test=(replace(first, picture=light), *rest)),
    ]
    digests = [plain(one)["digest"] for one in (task, *others)]
    assert len(set(digests)) == len(digests)
    assert plain(replace(task)) == plain(task)
    assert (
        plain(replace(task, test=(replace(first, picture=dark.copy()), *rest)))["digest"] in digests
    )


def test_functions_and_values_are_told_by_name_and_content():
    assert plain(judged) == f"{__name__}.judged"
    control = plain(Control("mine", "Mine", judged))
    assert control == {"class": "Control", "key": "mine", "name": "Mine", "make": plain(judged)}
    assert plain(Images(0)) != plain(Images())
    assert " at 0x" not in str([plain(lambda x: x), plain(object), control])


def test_versions_name_the_libraries_on_which_numbers_depend():
    assert versions()["numpy"] == np.__version__
    assert {"tokenizers", "pillow", "scikit-learn", "scipy"} <= set(versions())


@pytest.mark.parametrize("name", ["CrossModalPatch", "LayerSweep", "CausalTracing"])
def test_a_task_is_not_called_as_the_mean_over_tasks_is(name):
    from vlm_lens import recipes

    own = Task.from_rows(
        "mean", [("a", None, "b"), ("c", None, "d")], instruction="The:", validation=1
    )
    with pytest.raises(RecipeError, match="'mean'.*another name"):
        getattr(recipes, name)(tasks=own)
