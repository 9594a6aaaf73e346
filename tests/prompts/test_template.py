"""Prompts before any model, and the paper's template."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.pictures import thumbnail
from vlm_lens.prompts.template import RawPrompt, Template, question_answer


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (8, 6), "red")


def test_template_is_the_papers_without_a_space_after_the_colons() -> None:
    prompt = question_answer([("Greece", "Athens"), ("South Korea", "Seoul")], "Peru")
    assert prompt.text == "Q:Greece\nA:Athens\n\nQ:South Korea\nA:Seoul\n\nQ:Peru\nA:"
    assert prompt.images == ()


def test_third_colon_from_the_end_is_the_last_examples_delimiter() -> None:
    text = question_answer([("Greece", "Athens"), ("South Korea", "Seoul")], "Peru").text
    places = [i for i, c in enumerate(text) if c == ":"]
    assert text[: places[-3] + 1].endswith("Q:South Korea\nA:")


def test_query_alone_and_examples_alone() -> None:
    assert question_answer([], "Peru").text == "Q:Peru\nA:"
    assert question_answer([("Greece", "Athens")]).text == "Q:Greece\nA:Athens\n\n"


def test_pictures_stand_in_the_order_of_their_places(picture: Image.Image) -> None:
    other = Image.new("RGB", (4, 4), "blue")
    prompt = question_answer([(picture, "red"), ("Leek", "green")], other)
    assert prompt.text == "Q:<image>\nA:red\n\nQ:Leek\nA:green\n\nQ:<image>\nA:"
    assert prompt.images[0] is picture
    assert prompt.images[1] is other


def test_braces_in_values_are_left_alone() -> None:
    assert question_answer([("{input}", "{output}")], "{0}").text == (
        "Q:{input}\nA:{output}\n\nQ:{0}\nA:"
    )


def test_own_template() -> None:
    chat = Template("User: {input}<end>\nAssistant: {output}<end>\n", "User: {input}<end>\n")
    assert chat.build([("Peru", "Lima")], "Fiji").text == (
        "User: Peru<end>\nAssistant: Lima<end>\nUser: Fiji<end>\n"
    )
    with pytest.raises(PromptError, match=r"\{output\} exactly once"):
        Template("Q:{input}", "Q:{input}")


@pytest.mark.parametrize(
    ("examples", "query", "message"),
    [
        ([("<image>", "red")], None, "pass the picture itself"),
        ([(3, "red")], None, "a text or a PIL picture, not int"),
        ([("Leek", 3)], None, "an output is a text"),
        (["Leek"], None, "is a pair"),
        ([], 3, "a text or a PIL picture"),
    ],
)
def test_wrong_values(examples: list, query: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        question_answer(examples, query)


def test_raw_prompt_takes_a_list_or_one_picture(picture: Image.Image) -> None:
    assert RawPrompt("a <image>", [picture]) == RawPrompt("a <image>", picture)
    assert RawPrompt("a <image>", [picture]).images == (picture,)
    assert RawPrompt("a", None).images == ()


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("no place", 1, "0 '<image>' and there is 1 picture"),
        ("<image><image>", 1, "2 '<image>' and there is 1 picture"),
        ("<image>", 0, "1 '<image>' and there are 0 pictures"),
    ],
)
def test_places_and_pictures_must_agree(
    text: str, count: int, message: str, picture: Image.Image
) -> None:
    with pytest.raises(PromptError, match=message):
        RawPrompt(text, [picture] * count)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(PromptError, match="no such file"):
        RawPrompt("<image>", "flag.png")
    with pytest.raises(PromptError, match="PIL.Image.open"):
        RawPrompt("<image>", [3])
    with pytest.raises(PromptError, match="fromarray"):
        RawPrompt("<image>", [np.zeros((2, 2, 3))])
    with pytest.raises(PromptError, match="one RawPrompt for each text"):
        RawPrompt(["a", "b"])


def test_is_frozen_and_shows_itself(picture: Image.Image) -> None:
    prompt = RawPrompt("Q:<image>\nA:", [picture])
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.text = "x"
    assert repr(prompt) == "RawPrompt('Q:<image>\\nA:', images=[8x6])"
    assert repr(RawPrompt("a")) == "RawPrompt('a')"
    assert prompt._repr_html_().count("<img") == 1
    assert "&lt;b&gt;" in RawPrompt("<b>")._repr_html_()


def test_thumbnail_is_small_and_self_contained(picture: Image.Image) -> None:
    tag = thumbnail(picture, height=12)
    assert tag.startswith('<img src="data:image/png;base64,')
    assert 'height="12"' in tag
