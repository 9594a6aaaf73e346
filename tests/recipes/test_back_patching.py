"""Back-patching, run again with plain transformers and plain torch hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from recipes.plain import QUERY, Plain, few_shot, right, small
from vlm_lens import Patches
from vlm_lens.recipes import BackPatching, RecipeError, Result
from vlm_lens.recipes import back_patching as m

TASK = small("food-color", 5, 5)
RECIPE = BackPatching(
    tasks=TASK, seeds=1, layer=4, blocks=(0, 2, 5), batch_size=2, n_examples=2
)  # two batches of unlike size


class BackPatched:
    """Runs a prompt twice: what pictures hold after one block goes over what another gives."""

    def __init__(self, plain):
        self.plain = plain

    def held(self, text, image, block):
        kept = []
        self.plain.logits(text, [image], outputs=[(self.plain.blocks[block], kept.append)])
        return kept[0][0, self.where(text, image)]

    def where(self, text, image):
        ids = self.plain.inputs(text, [image])["input_ids"][0]
        return (ids == self.plain.tokenizer.convert_tokens_to_ids("<image>")).nonzero().flatten()

    def says(self, text, image, held, target, also=()):
        where = self.where(text, image)

        def edit(output):
            output = output.clone()
            output[:, where] = held
            return output

        edits = [(self.plain.blocks[target], edit), *also]
        return self.plain.says(text, [image], outputs=edits)


@pytest.fixture(scope="module")
def plain():
    return BackPatched(Plain("toy-llava"))


def test_pairs_and_answers_equal_plain_transformers(result, plain):
    source, target = result.values["pairs"]["prompt"]
    texts = few_shot(TASK.test, seed=1, n=2, query=QUERY)
    images = [row.image for row in TASK.test]
    held = [plain.held(t, i, source) for t, i in zip(texts, images, strict=True)]
    said = {
        "Prompt, back-patched": [
            plain.says(t, i, h, target) for t, i, h in zip(texts, images, held, strict=True)
        ],
        # batches of the first three and the last two rows; each takes the row before it
        "Prompt, back-patched from another row": [
            plain.says(texts[i], images[i], held[j], target) for i, j in enumerate((2, 0, 1, 4, 3))
        ],
    }
    for method, expected in said.items():
        answers = result.predictions
        got = answers[answers["method"] == method]["prediction"]
        assert [text.strip() for text in got] == expected
    vector = plain.plain.vector(few_shot(TASK.validation, seed=1, n=2))
    patch = plain.plain.put(4, vector[4])
    rows = TASK.validation
    for source, target in ((2, 0), (5, 2)):
        said = [
            plain.says(QUERY, r.image, plain.held(QUERY, r.image, source), target, [patch])
            for r in rows
        ]
        expected = np.mean([right(s, r.answers) for s, r in zip(said, rows, strict=True)])
        assert result.matrix("patch").loc[target, source] == pytest.approx(expected)


def test_without_is_the_method_as_it_is(toy, result):
    assert set(zip(*[result.tables["pairs"][c] for c in ("source", "target")])) == {  # noqa: B905
        (-1, -1), (2, 0), (5, 0), (5, 2)
    }  # fmt: skip
    paper = RECIPE.paper(layer=None).run(toy, progress=False)
    at = paper.layers.query("layer == 4")["accuracy"].mean()
    assert result.without("patch") == pytest.approx(at)


def test_writing_back_the_same_block_changes_nothing(toy):
    prompt = toy.as_prompt(TASK.query(TASK.test[0], "image"))
    held = RECIPE.activations(toy, prompt, [3], 0)
    same = toy.run(prompt, interventions=RECIPE.write(held, (3, 3)))
    torch.testing.assert_close(same, toy.run(prompt), atol=0, rtol=0)
    assert held[3].shape == (1, 16, toy.cfg.d_model)


def test_any_position_and_one_row_at_a_time(toy):
    recipe = BackPatching(
        tasks=small("food-color", 3, 3), seeds=1, layer=4, at=Patches(0, rows=(0, 2)),
        under=("patch",), blocks=(1, 3), batch_size=1, n_examples=2,
    )  # fmt: skip
    result = recipe.run(toy, progress=False)
    methods = set(result.table["method"])
    assert "Patch, back-patched forward" in methods
    assert "Patch, back-patched from another row" not in methods


def test_prompts_with_unequally_many_positions_run_as_one_by_one(toy):
    def longer(rows):  # every third name is said twice: texts of several lengths
        return tuple(
            row if i % 3 else replace(row, input=f"{row.input} {row.input}")
            for i, row in enumerate(rows)
        )

    task = small("country-capital", 5, 7)
    task = replace(task, validation=longer(task.validation), test=longer(task.test))
    settings = {"tasks": task, "seeds": 1, "layer": 4, "at": "text", "under": ("prompt",),
                "blocks": (2, 5), "n_examples": 2}  # fmt: skip
    together, apart = (
        BackPatching(**settings, batch_size=n).run(toy, progress=False) for n in (4, 1)
    )
    prompts = task.example_sets("text", seed=1, n=2, target_modality="image", split="test")
    groups = BackPatching(**settings).alike(toy, prompts)
    lengths = [[len(toy.to_tokens(prompts[i].text)) for i in rows] for rows in groups]
    assert len(groups) > 1 and all(len(set(one)) == 1 for one in lengths)
    name = "Prompt, back-patched"
    said = [
        r.predictions[r.predictions["method"] == name]["prediction"].tolist()
        for r in (together, apart)
    ]
    assert said[0] == said[1]
    pd.testing.assert_frame_equal(together.tables["pairs"], apart.tables["pairs"])


def test_the_methods_stand_beside_those_of_the_paper(result, tmp_path):
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.BackPatchingResult and repr(again) == repr(result)
    assert {"methods", "pairs_prompt", "pairs_patch"} <= set(again.plots())
    assert {"Prompt", "Patch", "Patch, back-patched"} <= set(again.table["method"])
    with pytest.raises(RecipeError, match="no sweep under 'query'"):
        again.matrix("query")


def test_of_equal_pairs_the_first_is_taken():
    rows = [("a", 1, -1, -1, 0.9), ("a", 1, 2, 0, 0.5), ("a", 1, 1, 0, 0.7), ("a", 1, 2, 1, 0.7)]
    columns = ["task", "seed", "source", "target", "accuracy"]
    assert m.best_pair(pd.DataFrame(rows, columns=columns)) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"at": "picture"}, r"BackPatching\.at is 'picture'"),
        ({"under": ()}, r"BackPatching\.under"),
        ({"under": ("query",)}, r"BackPatching\.under"),
        ({"blocks": (3,)}, r"BackPatching\.blocks"),
        ({"query": "text"}, r"BackPatching\.at is 'images'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        BackPatching(**fields)


def test_blocks_that_are_not_there_are_refused_before_any_run(toy, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"BackPatching\.blocks names 9"):
        BackPatching(blocks=(1, 9)).run(toy)
