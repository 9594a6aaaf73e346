"""What the page holds equals what the model does, by the public calls and by plain runs."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
import tiny
from families.every import VLMS

from explorer import decoded
from vlm_lens import (
    ActivationPatch,
    All,
    HookedVLM,
    Last,
    LogitLens,
    RawPrompt,
    TaskVector,
    VLMLensError,
    explore,
)
from vlm_lens.explorer.read import Reader
from vlm_lens.figures.prompt_view import visible
from vlm_lens.recipes.parts.vector_sources import TaskVectors
from vlm_lens.tasks import Task

TASK = Task.load("country-capital")


@pytest.fixture(scope="module")
def llava():
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="module")
def vector(llava):
    return TaskVectors(llava, "text")(TASK, 1)


@pytest.fixture(scope="module")
def prompt(llava):
    return llava.prompt(TASK.query("Algeria", "image"))


@pytest.fixture(scope="module")
def shown(llava, vector, prompt):
    page = explore(
        llava, {"Algeria": prompt}, vectors={"capital": vector}, blocks=[1, 4], progress=False
    )
    [model] = decoded.data(page.html)["models"]
    return page, model, model["scenes"][0]


def write(vector, block):
    return ActivationPatch(f"blocks.{block}.hook_resid_post", at=Last(), value=vector)


@pytest.mark.parametrize("block", [None, 1, 4])
def test_numbers_are_those_of_the_public_calls(llava, vector, prompt, shown, block):
    _, model, scene = shown
    run = scene["plain"] if block is None else scene["written"]["capital"][str(block)]
    edits = () if block is None else write(vector, block)
    last = prompt.layout.last
    assert run["positions"] == (list(range(len(prompt.layout))) if block is None else [last])
    theirs = llava.attention(prompt, at=All(), interventions=edits).values.to_numpy()
    mine = decoded.attention(run, len(prompt.layout))
    np.testing.assert_allclose(mine, theirs[:, :, run["positions"]], atol=2e-5)
    seen = LogitLens(k=5).run(llava, prompt, interventions=edits)
    words, probs = decoded.lens(run)
    for i, position in enumerate(run["positions"]):
        for layer in range(8):
            top = seen.top(layer, position)
            np.testing.assert_allclose(probs[layer, i], [p for _, p in top], atol=2e-5)
            assert words[layer, i, 0] == visible(top[0][0])
    logits = llava.run(prompt, interventions=edits)[0, last].softmax(-1)
    top = logits.topk(5)
    found = decoded.answers(run)
    np.testing.assert_allclose(list(found.values()), top.values, atol=2e-5)
    assert list(found)[0] == visible(llava.tokenizer.decode(top.indices[0]))


def test_answers_flip_and_are_judged(llava):
    page = explore(llava, {"Algeria": TASK.query("Algeria", "image")}, tasks="country-capital",
                   blocks=[4], progress=False)  # fmt: skip
    scene = decoded.data(page.html)["models"][0]["scenes"][0]
    assert next(iter(decoded.answers(scene["plain"]))) == "Algeria"
    run = scene["written"]["country-capital"]["4"]
    assert next(iter(decoded.answers(run))) == "Algiers" == scene["expected"]["country-capital"]
    assert run["right"][0] is True and "right" not in scene["plain"]


def test_patches_lie_at_their_pixels(prompt, shown):
    _, _, scene = shown
    [drawing] = scene["drawings"]
    assert len(drawing["cells"]) == 16 and drawing["size"] == [224, 224]
    for x, y, w, h, position, row, col in drawing["cells"]:
        assert prompt.layout.image[0].patch(row, col) == position
        x0, y0, x1, y1 = prompt.layout.image[0].pixels(position)
        assert (x, y, x + w, y + h) == pytest.approx((x0, y0, x1, y1), abs=0.02)


def test_positions_that_see_later_ones_change_too(load):
    """A write at a position that is not the last: those after it change, those before do not."""
    vlm = load("clip-llama")
    prompt = vlm.prompt("Greece and Peru")
    reader = Reader(vlm, prompt)
    plain = reader.plain()
    _, cache = vlm.run_with_cache(prompt)
    layout = prompt.layout

    class Early:
        judge = None

        @staticmethod
        def write(block):
            point = f"blocks.{block}.hook_resid_post"
            return ActivationPatch(point, at=layout.last - 1, value=2 * cache[point][0, -1])

    [run] = reader.written(plain, Early(), [0])
    assert run.positions == (layout.last - 1, layout.last)
    edit = Early.write(0)
    theirs = vlm.attention(prompt, at=All(), interventions=edit).values.to_numpy()
    np.testing.assert_allclose(run.attention, theirs[:, :, -2:], atol=1e-5)


def test_a_text_prompt_and_a_model_without_pictures(load):
    page = explore(load("llama"), "Q:Greece\nA:", progress=False)
    [scene] = decoded.data(page.html)["models"][0]["scenes"]
    assert scene["pictures"] == scene["drawings"] == []
    assert decoded.attention(scene["plain"], len(scene["tokens"])).sum(-1) == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("paligemma", [16]), ("llava_next", [16, 48]), ("mllama", [0]), ("blip2", [16]),
     ("idefics2-split", [0])],
)  # fmt: skip
def test_every_kind_of_picture(name, drawn, tmp_path):
    """Attention both ways, tiles, pictures beside the text, and latents."""
    vlm = VLMS[name].load(tmp_path)
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(1, (64, 48))])
    vector = TaskVector.read(vlm, [RawPrompt("<image>B", prompt.images[0])], at=Last())
    page = explore(vlm, prompt, vectors={"v": vector}, progress=False)
    [scene] = decoded.data(page.html)["models"][0]["scenes"]
    assert [len(d["cells"]) for d in scene["drawings"]] == drawn
    everything = list(range(len(prompt.layout)))
    for block, run in scene["written"]["v"].items():
        edit = write(vector, block)
        theirs = vlm.attention(prompt, at=All(), interventions=edit).values.to_numpy()
        mine = decoded.attention(run, len(everything))
        np.testing.assert_allclose(mine, theirs[:, :, run["positions"]], atol=3e-5)
        same = [p for p in everything if p not in run["positions"]]
        plain = decoded.attention(scene["plain"], len(everything))
        np.testing.assert_allclose(plain[:, :, same], theirs[:, :, same], atol=3e-5)
    both_ways = len(scene["written"]["v"]["0"]["positions"]) > 1
    assert both_ways == (name == "paligemma")


def test_a_vector_is_read_from_what_is_asked(llava, prompt):
    with pytest.raises(VLMLensError, match="text, image, description, instruction"):
        explore(llava, prompt, tasks="food-color", source="audio", progress=False)
    page = explore(llava, {"Algeria": prompt}, tasks=TASK.name, source="instruction", blocks=[4],
                   progress=False)  # fmt: skip
    [model] = decoded.data(page.html)["models"]
    assert "The capital city of the country:" in model["vectors"][0]["about"]
    value = TaskVectors(llava, "instruction")(TASK, 1)
    top = llava.run(prompt, interventions=write(value, 4))[0, -1].softmax(-1).max()
    run = model["scenes"][0]["written"][TASK.name]["4"]
    assert run["probs"][0] == pytest.approx(float(top), abs=2e-5)


def test_rows_are_successes_first_and_a_failure_last():
    vlm = HookedVLM.from_pretrained("toy-fuyu")
    page = explore(vlm, tasks=["country-capital", "food-color"], rows=3, progress=False)
    scenes = decoded.data(page.html)["models"][0]["scenes"]
    assert len(scenes) == 6
    right = [
        sum(any(r.get("right", [0])[0] for r in runs.values()) for runs in s["written"].values())
        for s in scenes
    ]
    assert right[:2] == [1, 1] and right[3:] == [0, 0, 0]  # it knows no capitals from flags


def test_a_page_is_a_file_and_a_frame(shown, tmp_path):
    page, *_ = shown
    path = page.save(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    framed = page._repr_html_()
    [inside] = re.findall(r'srcdoc="([^"]*)"', framed)
    assert unescape(inside) == page.html
    assert "capital" in repr(page + page) or "toy-llava" in repr(page + page)
    with pytest.raises(VLMLensError, match=r"\.html"):
        page.save(tmp_path / "page.png")


def test_texts_from_outside_are_text(llava, prompt, vector):
    name = "</script><img src=x onerror=alert(1)>"
    page = explore(llava, {name: prompt}, vectors={name: vector}, blocks=[4], progress=False).html
    assert page.count("</script>") == 2 and "<img src=x" not in page
    assert decoded.data(page)["models"][0]["scenes"][0]["name"] == name


def test_a_batch_is_refused(llava):
    with pytest.raises(VLMLensError, match="one prompt at a time"):
        explore(llava, llava.prompt(["Q:a\nA:", "Q:b\nA:"]), progress=False)
