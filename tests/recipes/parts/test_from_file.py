"""Recipes from YAML files: the same dataclasses; errors name the file, the line and the field."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from vlm_lens.cli import app
from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis, RecipeError, Result
from vlm_lens.recipes.parts.from_file import load_recipe, recipe_classes

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLES = sorted((DOCS / "recipes").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_same_dataclass_comes_out(tmp_path):
    path = write(
        tmp_path,
        "recipe: CrossModalPatch\ntasks: [country-capital, food-color]\nseeds: [2, 5]\nlayer: 4\n",
    )
    wanted = CrossModalPatch(tasks=("country-capital", "food-color"), seeds=(2, 5), layer=4)
    assert load_recipe(path) == wanted


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_valid(path):
    own = path.with_suffix(".py")
    recipe = load_recipe(path, code=own if own.exists() else None)
    assert recipe.model == "toy-llava"
    recipe.check()


def test_a_task_of_ones_own_is_read_from_beside_the_file():
    task = load_recipe(DOCS / "recipes" / "own_data.yaml").tasks
    assert task.instruction == "The color of the fruit:"
    assert len(task.validation) == 6 and task["Lime"].output == "green"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: CrossModalPach\n", r"line 1: there is no recipe 'CrossModalPach'.*"
         r"Did you mean 'CrossModalPatch'"),
        ("tasks: food-color\n", r"says no 'recipe:'"),
        ("recipe: CrossModalPatch\nsead: 1\n", r"line 2: .* no field 'sead'. Did you mean 'seeds'"),
        ("recipe: CrossModalPatch\nseeds: '3'\n", r"line 2: CrossModalPatch.seeds is '3'"),
        ("recipe: CrossModalPatch\nquery: picture\n", r"line 2: .*'image', 'text' or"),
        ("recipe: CrossModalPatch\nseeds: 1\nseeds: 2\n", r"line 3: 'seeds' stands on line 2"),
        ("recipe: CrossModalPatch\ntasks: [food-colour]\n", r"line 2: .*food-colour.*'food-color'"),
        ("recipe: CrossModalPatch\ntasks: {csv: no.csv, instruction: 'The x:'}\n",
         r"line 2: CrossModalPatch.tasks: there is no table"),
        ("recipe: CrossModalPatch\ntasks: {csv: no.csv, instructions: 'The x:'}\n",
         r"line 2: .*'instructions'.*Did you mean 'instruction'"),
        ("recipe: CrossModalPatch\ntasks: {csv: no.csv}\n", r"line 2: .*needs an 'instruction'"),
        ("recipe: CrossModalPatch\ntasks: {table: no.csv}\n", r"line 2: .*'csv'.*'folder'"),
        ("recipe: PhaseAnalysis\nruns: 3\n", r"PhaseAnalysis needs task"),
        ("recipe: [PhaseAnalysis\n", r"is not YAML"),
        ("- a\n- b\n", r"holds no fields"),
        ("", r"holds no fields"),
    ],
)  # fmt: skip
def test_errors_name_the_field(text, said, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    message = " ".join(str(error.value).split())
    assert re.search(said, message), message
    assert str(path) in message


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="no Python file"):
        load_recipe(write(tmp_path, "recipe: X\n"), code=tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="defines no recipe"):
        recipe_classes(tmp_path / "empty.py")


def test_own_code_runs_only_when_named(tmp_path):
    """A YAML file cannot make Python run."""
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, "recipe: own.py:Own\n"))
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, "recipe: !!python/object/apply:os.getcwd []\n"))
    assert not marker.exists()


def test_known_recipes_are_those_of_the_package():
    assert {"CrossModalPatch", "PhaseAnalysis"} <= set(recipe_classes())
    assert "Recipe" not in recipe_classes() and "Result" not in recipe_classes()


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["run", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def test_run_saves_what_the_recipe_gives(toy, tmp_path):
    path = write(tmp_path, "recipe: PhaseAnalysis\ntask: food-color\nruns: 3\n")
    assert "names no model" in run(path, "--out", tmp_path / "out", code=1)
    said = run(path, "--model", "toy-llava", "--out", tmp_path / "out")
    assert "\nembed " in said and str(tmp_path / "out") in said
    expected = PhaseAnalysis("food-color", runs=3).run(toy, progress=False).table
    pd.testing.assert_frame_equal(Result.load(tmp_path / "out").table, expected)
    assert "is there already" in run(
        path, "--model", "toy-llava", "--out", tmp_path / "out", code=1
    )


def test_the_own_recipe_of_the_docs_is_short_and_equals_its_parts(toy, tmp_path):
    """Accuracy at scale 1 in one block is that of a patch; the recipe has at most 25 lines."""
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    shown = page[page.index("@dataclass(frozen=True)\nclass ScaleSweep") :]
    shown = shown[: shown.index('columns=["scale", "accuracy"])') + 1]
    assert len([line for line in shown.splitlines() if line.strip()]) <= 25
    path = write(tmp_path, "recipe: ScaleSweep\ntask: food-color\nblocks: [4]\nscales: [1.0]\n")
    own = DOCS / "recipes" / "scale_sweep.py"
    run(path, "--model", "toy-llava", "--code", own, "--out", tmp_path / "out")
    table = Result.load(tmp_path / "out").table
    assert (tmp_path / "out" / "figure.html").exists()
    patch = CrossModalPatch(tasks="food-color", seeds=1, layer=4, controls=False)
    expected = patch.run(toy, progress=False).accuracy("Patch", "food-color")
    assert table["accuracy"].tolist() == pytest.approx([expected], abs=1e-12)
