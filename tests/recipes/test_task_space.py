"""Points of the task space from plain transformers, and silhouettes by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from recipes.plain import Plain, few_shot, small
from vlm_lens.recipes import RecipeError, Result, TaskSpace

LAYER, POINTS = 5, 6
RECIPE = TaskSpace(
    (small("food-color", 8, 8), small("animal-young", 8, 8)), points=POINTS, split="validation",
    relabellings=19,
)  # fmt: skip


def test_points_equal_plain_transformers(toy):
    plain, task = Plain("toy-llava"), RECIPE.tasks[0]
    mine = RECIPE.read(toy, task, "text", LAYER)
    norm = plain.model.model.language_model.norm
    for text, (vector, context) in zip(
        few_shot(task.validation, 1), zip(mine[::2], mine[1::2], strict=True), strict=False
    ):
        text = text[: text.rindex("A:", 0, text.rindex("A:")) + 2]
        kept = []
        plain.logits(text, outputs=[(plain.blocks[LAYER], kept.append)])
        with torch.no_grad():
            normed = norm(kept[0][0])
        name = text[text.rindex("Q:") + 2 : -3]
        assert (vector["set"], context["set"], context["input"]) == (
            "task vectors",
            "context",
            name,
        )
        close = {"rtol": 1e-3, "atol": 1e-4}
        np.testing.assert_allclose(vector["value"], normed[-1], **close)
        # ...<name>\nA: ; the name's tokens stand between the last "Q:" and the line break
        after = len(plain.inputs("Q:x\nA:")["input_ids"][0]) - len(
            plain.inputs("Q:x")["input_ids"][0]
        )
        before = len(plain.inputs(text[: text.rindex("Q:") + 2])["input_ids"][0])
        inside = normed[before : len(normed) - after].mean(0)
        np.testing.assert_allclose(context["value"], inside, **close)


def test_a_pictures_context_is_the_mean_over_its_patches(toy):
    task = RECIPE.tasks[0]
    mine = RECIPE.read(toy, task, "image", "embed")[1]
    row = next(r for r in task.validation if r.input == mine["input"])
    # before the first block nothing is mixed in: a prompt with that picture alone holds the same
    prompt = toy.prompt(task.query(row, "image"))
    _, cache = toy.run_with_cache(prompt, names_filter="projector.hook_out")
    expected = toy.ln_final(cache["projector.hook_out"][0]).mean(0)
    np.testing.assert_allclose(mine["value"], expected, rtol=1e-3, atol=1e-4)


def test_the_silhouette_is_rousseeuws_and_chance_is_random_labels():
    values = np.array([[0.0, 0], [0, 1], [5, 0], [5, 1]])
    score, p, chance, high = RECIPE.silhouette(values, ["a", "a", "b", "b"])
    far = (5 + np.sqrt(26)) / 2
    assert score == pytest.approx((far - 1) / far)
    assert chance < high <= score
    # of the ways to label four points so, a third give these clusters
    assert 0.05 <= p <= 0.8
    generator = np.random.default_rng(0)
    clouds = np.concatenate([generator.normal(c, 0.1, (20, 3)) for c in (0, 5)])
    assert RECIPE.silhouette(clouds, ["a"] * 20 + ["b"] * 20)[1] == 1 / 20


def test_a_domain_alone_makes_clusters_of_tasks_but_none_within_it():
    generator = np.random.default_rng(0)
    rows, values = [], []
    for domain, centre in (("food", 0.0), ("animal", 9.0)):
        for task in "ab":
            for source in ("text", "image"):
                rows += [(f"{domain}-{task}", domain, source)] * 8
                values.append(generator.normal(centre, 1, (8, 4)))
    points = pd.DataFrame(rows, columns=["task", "domain", "source"])
    found = {by: rest for by, *rest in RECIPE.tested(np.concatenate(values), points)}
    assert list(found) == ["task", "modality", "domain", "task within domain"]
    lowest = 1 / (1 + RECIPE.relabellings)
    assert found["task"][1] == lowest == found["domain"][1]  # by domain, not by task
    assert found["domain"][0] > 0.5 and abs(found["task within domain"][0]) < 0.1
    assert found["task within domain"][1] > lowest


def test_silhouettes_within_groups_are_the_mean_of_the_groups_own():
    from sklearn.metrics import silhouette_samples

    generator = np.random.default_rng(1)
    values, labels = generator.normal(size=(24, 3)), np.array(list("aabb" * 3 + "ccdd" * 3))
    group = np.array(["1"] * 12 + ["2"] * 12)
    score = RECIPE.silhouette(values, labels, within=group, among=group)[0]
    own = [silhouette_samples(values[group == g], labels[group == g]) for g in "12"]
    assert score == pytest.approx(np.concatenate(own).mean())


def test_modalities_are_exchanged_within_tasks():
    # each task has one modality only: to exchange within tasks changes nothing, so p is 1
    generator = np.random.default_rng(2)
    values = np.concatenate([generator.normal(c, 0.1, (6, 2)) for c in (0, 5)])
    labels, tasks = ["text"] * 6 + ["image"] * 6, ["a"] * 6 + ["b"] * 6
    assert RECIPE.silhouette(values, labels)[1] < 0.1
    assert RECIPE.silhouette(values, labels, within=tasks)[1] == 1


def test_vectors_lie_by_task_and_context_by_modality(result):
    assert result.silhouette("task vectors", "task") > result.silhouette("task vectors", "modality")
    assert result.silhouette("context", "modality") > result.silhouette("context", "task")
    points = result.tables["points"]
    assert points.groupby("set").size().to_dict() == {
        "context": 4 * POINTS, "task vectors": 4 * POINTS + 2,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="no silhouette of 'vectors'"):
        result.silhouette("vectors")


def test_runs_repeat_and_files_hold_all(result, toy, tmp_path):
    again = RECIPE.run(toy, progress=False)
    np.testing.assert_array_equal(again.tables["points"]["x"], result.tables["points"]["x"])
    assert again.table.equals(result.table)
    assert repr(Result.load(result.save(tmp_path))) == repr(result)
    figure = result.plot()
    assert "silhouette by task" in figure.layout.annotations[0].text
    assert "block 5" in figure.layout.title.text


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"sources": ("instruction",)}, "sources"), ({"points": 1}, "points"),
     ({"relabellings": 0}, "relabellings"), ({"perplexity": 0.0}, "perplexity"),
     ({"tasks": ()}, "tasks")],
)  # fmt: skip
def test_wrong_fields_are_named(fields, name):
    with pytest.raises(RecipeError, match=rf"TaskSpace\.{name}"):
        TaskSpace(**fields)


def test_what_the_model_cannot_do_is_said_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"TaskSpace\.layer is 9"):
        TaskSpace(layer=9).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        TaskSpace().run(load("llama"))
