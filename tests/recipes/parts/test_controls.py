"""Controls: what is written, against vectors made by hand."""

from __future__ import annotations

import pytest
import torch

from recipes.plain import small
from vlm_lens import Find, Last, TaskVector
from vlm_lens.recipes import Control, CrossModalPatch, RecipeError
from vlm_lens.recipes.parts.controls import CONTROLS, chosen_controls, donors, interventions
from vlm_lens.recipes.parts.vector_sources import TaskVectors
from vlm_lens.tasks import Task
from vlm_lens.tasks.rows import Row
from vlm_lens.terms import NO_CONTEXT, PATCH, PROMPT, WRONG_OTHER, WRONG_SAME

TASK, LAYER = "food-color", 3


@pytest.fixture(scope="module")
def setting(toy):
    recipe = CrossModalPatch(tasks=TASK, seeds=1)
    return recipe.setting(Task.load(TASK), 1, LAYER, recipe.reader(toy))


@pytest.fixture(scope="module")
def made(setting):
    return interventions(CONTROLS, setting)


def read(toy, task, at=None):
    """The vector of the paper's prompts, read at the fifth example's delimiter."""
    at = at or Find(":", -3)
    return TaskVector.read(toy, task.example_sets("text", seed=1), at=at).layer(LAYER)


def test_what_controls_write(toy, setting, made):
    assert list(made) == [control.name for control in CONTROLS]
    task = Task.load(TASK)
    mine = read(toy, task)
    torch.testing.assert_close(setting.value(), mine, rtol=1e-4, atol=1e-4)
    expected = {
        WRONG_SAME: read(toy, Task.load("food-flavor")),
        WRONG_OTHER: read(toy, Task.load("country-capital")),
        "Random vector": torch.randn(mine.shape, generator=torch.Generator().manual_seed(1)),
        "Shuffled labels": read(toy, task.shuffled(1)),
    }
    for name, value in expected.items():
        written = made[name].value.data
        torch.testing.assert_close(
            written, value * mine.norm() / value.norm(), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(written.norm(), mine.norm(), rtol=1e-4, atol=0)


def test_the_single_prompt_is_one_of_those_that_are_averaged(toy, setting, made):
    one = made["Single prompt"].value.data
    each = [
        TaskVector.read(toy, p, at=Find(":", -3)).layer(LAYER)
        for p in Task.load(TASK).example_sets("text", seed=1)
    ]
    distances = torch.stack(each).sub(one).norm(dim=-1)
    assert distances.min() < 1e-3 < distances.sort().values[1]


def test_added_acts_as_an_addition_in_a_plain_hook(toy, setting, made):
    prompt = toy.prompt("Q:Peru\nA:")

    def add(module, args, output):
        output = output.clone()
        output[:, -1] += setting.value()
        return output

    handle = toy.hf_model.model.language_model.layers[LAYER].register_forward_hook(add)
    with torch.no_grad():
        plain = toy.hf_model(**prompt.inputs).logits
    handle.remove()
    torch.testing.assert_close(toy.run(prompt, interventions=made["Added, not replaced"]), plain)


def test_controls_of_an_instruction(toy):
    recipe = CrossModalPatch(tasks=TASK, source="instruction")
    names = {c.key for c in recipe.used_controls()}
    assert names == {"wrong-same", "wrong-other", "random", "added"}


def test_donors_are_another_task_and_another_domain():
    tasks = CrossModalPatch().chosen_tasks()
    for task in tasks:
        same, other = donors(task, tasks)
        assert same.domain == task.domain and same.name != task.name
        assert other.domain != task.domain
    same, other = donors(tasks[0], tasks[:1])
    assert (same.name, other.name) == ("country-currency", "animal-latin")


def test_tasks_of_ones_own_without_a_domain_are_the_donors_of_each_other():
    def rows(kind, split, n):
        return tuple(Row(f"{kind} {split} {i}", f"{kind}{i}") for i in range(n))

    def own(name, kind):
        return Task(name, f"{name}:", rows(kind, "val", 4), rows(kind, "test", 3))

    dog, dog_too, car = own("dog", "dog"), own("dog-too", "dog"), own("car", "car")
    assert donors(dog, (dog, car, dog_too)) == (dog_too, car)
    assert donors(car, (dog, car, dog_too)) == (None, dog_too)
    assert donors(dog, (dog, dog_too))[0] is dog_too
    assert donors(dog, (dog, dog_too))[1].name in Task.names()  # shipped ones where there is none


def test_a_control_of_ones_own_is_a_row_of_the_table(toy):
    def flipped(setting):
        return setting.write(-setting.value())

    mine = Control("flipped", "Opposite vector", flipped)
    recipe = CrossModalPatch(tasks=small(TASK), seeds=1, layer=LAYER, controls=("random", mine))
    result = recipe.run(toy, progress=False)
    methods = list(dict.fromkeys(result.table["method"]))
    assert methods == [
        NO_CONTEXT,
        PROMPT,
        PATCH,
        "Random vector",
        "Majority answer",
        "Best constant token",
        mine.name,
    ]
    assert result.provenance["recipe"]["controls"][0] == "random"


def test_two_of_one_name_are_refused():
    with pytest.raises(RecipeError, match="two controls of one name"):
        chosen_controls(("random", "random"), field="X.controls")


def test_vectors_are_read_once(toy, monkeypatch):
    vectors = TaskVectors(toy, "text", n_examples=2)
    first = vectors(Task.load(TASK), 1)
    monkeypatch.setattr(TaskVectors, "each", None)
    assert vectors(Task.load(TASK), 1) is first
    assert vectors.single(Task.load(TASK), 1).at == Last()
