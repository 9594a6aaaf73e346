"""The page of the real models' numbers, written from results of a small model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.docs import real_numbers as script
from scripts.zoo.real import cut
from vlm_lens import HookedVLM
from vlm_lens.recipes import CrossModalPatch

TASKS = ("food-color", "food-flavor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    vlm = HookedVLM.from_pretrained("toy-llava")
    recipe = CrossModalPatch(
        tuple(cut(name, 8) for name in TASKS), seeds=2, controls=("wrong-same", "random")
    )
    recipe.run(vlm, progress=False).save(out / "text-image")
    text = CrossModalPatch(
        tuple(cut(name, 8) for name in TASKS), source="text", query="text", seeds=1, layer=4,
        controls=False,
    )  # fmt: skip
    text.run(vlm, progress=False).save(out / "smollm2")
    known = {name: [row.input for row in cut(name, 8).test[:3]] for name in TASKS}
    (out / "known.json").write_text(json.dumps(known))
    return out


def test_the_page_holds_what_was_measured_and_leaves_out_the_rest(folder):
    page = script.page(folder)
    assert "### smol-llava, text -> image" in page and "### SmolLM2, text -> text" in page
    assert "16 queries of test rows" in page and "times Prompt" in page
    assert "### Phases" not in page and "### Vectors of SmolLM2" not in page


def test_another_pictures_answers_are_those_of_all_other_rows(folder):
    result = script.Result.load(folder / "text-image")
    table = script.lookup(result).set_index("task")
    for name in TASKS:
        rows, scores = cut(name, 8).test, []
        patched = result.predictions.query("method == 'Patch' and task == @name")
        for _, said in patched.groupby("seed"):
            for i, text in enumerate(said["prediction"]):
                text = text.strip()
                right = [
                    any(text and (a.startswith(text) or text.startswith(a)) for a in row.answers)
                    for row in rows
                ]
                scores.append((right[i], np.mean(right[:i] + right[i + 1 :])))
        own, other = np.mean(scores, axis=0)
        assert table["own picture"][name] == pytest.approx(own)
        assert table["another picture"][name] == pytest.approx(other)


def test_known_rows_are_told_from_the_others(folder):
    result = script.Result.load(folder / "smollm2")
    known = json.loads((folder / "known.json").read_text())
    table = script.told_apart(result, known).set_index("task")
    for name in TASKS:
        mine = result.predictions.query("method == 'Patch' and task == @name")
        easy = mine[[i in known[name] for i in mine["input"]]]["correct"]
        assert len(easy) == 3 and table["known"][name] == "3 of 8"
        assert table["Patch, known"][name] == pytest.approx(easy.mean())


def test_paper_real_model_and_organisms_stand_side_by_side(folder):
    found = script.results(folder)
    text = script.side_by_side(found, script.OUT / "paper_numbers.md")
    rows = {
        one.split("|")[1].strip(): [c.strip() for c in one.split("|")[2:-1]]
        for one in text.splitlines()
    }
    assert rows[""] == [
        "LLaVA-v1.5", "Mantis-Fuyu", "Idefics2", "smol-llava", "toy-llava", "toy-idefics2",
        "toy-fuyu",
    ]  # fmt: skip
    patch = f"{found['text-image'].accuracy():.2f}".replace("0.", ".", 1)
    assert rows["Text Examples Patch"][:4] == [".32", ".31", ".51", patch]
    assert rows["Text Examples Patch"][4:] == [".59", ".95", ".20"]
    assert rows["Text Examples Patch, vectors of the base LLM"][0] == ".37"
