"""Few-shot prompts as conversations, against what is written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from families import tiny_idefics2

from vlm_lens import HookedVLM
from vlm_lens.errors import PromptError
from vlm_lens.prompts.chat import ChatTemplate
from vlm_lens.tasks import Task

# the form of HuggingFaceM4/idefics2-8b
IDEFICS2 = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def idefics2(tmp_path_factory) -> HookedVLM:
    vlm = HookedVLM.from_pretrained(tiny_idefics2.save(tmp_path_factory.mktemp("idefics2")))
    vlm.processor.chat_template = IDEFICS2
    return vlm


def test_examples_are_turns_as_the_paper_writes_them(idefics2, picture):
    text = ChatTemplate(idefics2).build([("Greece", "Athens")], picture)
    assert text.text == (
        "User: Greece<end_of_utterance>\nAssistant: Athens<end_of_utterance>\n"
        "User:<image><end_of_utterance>\nAssistant:"
    )
    assert text.images == (picture,)
    assert len(idefics2.prompt(text).layout.images) == 1


def test_a_task_takes_it_in_place_of_its_own(idefics2):
    task = replace(Task.load("country-capital"), template=ChatTemplate(idefics2))
    assert task.query("France", "text").text == "User: France<end_of_utterance>\nAssistant:"
    assert hash(task) != hash(Task.load("country-capital"))


def test_a_first_token_is_not_there_twice(load):
    llama = load("llama")
    llama.tokenizer.chat_template = WITH_BOS
    try:
        text = ChatTemplate(llama).build([("a", "b")], "c").text
    finally:
        llama.tokenizer.chat_template = None
    assert text == "[user]a[assistant]b[user]c[assistant]"
    ids = llama.tokenizer(text)["input_ids"]
    assert ids.count(llama.tokenizer.bos_token_id) == 1


def test_no_template_and_wrong_inputs_are_said(clip, idefics2):
    with pytest.raises(PromptError, match="no chat template"):
        ChatTemplate(clip)
    with pytest.raises(PromptError, match="a turn is a text or a PIL picture"):
        ChatTemplate(idefics2).build([(3, "b")], "c")


def test_the_experiment_runs_on_conversations(idefics2):
    from vlm_lens.recipes import CrossModalPatch

    task = Task.load("country-capital")
    task = replace(task, validation=task.validation[:3], test=task.test[:3])
    recipe = CrossModalPatch(tasks=task, seeds=1, n_examples=2, form="chat", controls=("added",))
    result = recipe.run(idefics2, progress=False)
    assert len(result.layers) == idefics2.cfg.n_layers
    read = recipe.vector(idefics2, task, 1).prompts[0]
    assert read.count("User:") == 2 and read.endswith("<end_of_utterance>\nAssistant:")


# ---------------------------------------------------------------------- forms of conversations

OPTIONS = (
    "{% for m in messages %}<s>{{ m.role }}:"
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for c in m.content %}"
    "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}{{ '\n' }}"
    "{% endfor %}{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% if add_generation_prompt %}A:{{ 'think' if enable_thinking }}{% endif %}"
)


@pytest.fixture
def talker(load, monkeypatch) -> HookedVLM:
    reader = tiny.reader("clip-llama")
    reader.chat_template = OPTIONS
    return HookedVLM(load("clip-llama").hf_model, reader)


def turn(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def ids(prompt) -> list[list[int]]:
    return prompt.inputs["input_ids"].tolist()


def test_it_is_what_the_processor_makes_of_it(talker, picture):
    image = {"type": "image", "image": picture}
    for messages in (
        turn(image, {"type": "text", "text": "the colour?"}),
        [{"role": "user", "content": "Q:Greece"}],
        [{"role": "user", "content": "Q:Peru"}, {"role": "assistant", "content": "Lima"}],
    ):
        theirs = talker.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )  # fmt: skip
        mine = talker.chat(messages).inputs
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name


def test_ways_to_give_a_picture(talker, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    text = {"type": "text", "text": "?"}
    expected = talker.chat(turn({"type": "image", "image": picture}, text))
    for part in (
        {"type": "image", "path": str(path)}, {"type": "image", "url": str(path)},
        {"type": "image", "image": path}, {"type": "image_url", "image_url": {"url": str(path)}},
        picture,
    ):  # fmt: skip
        found = talker.chat(turn(part, text))
        assert ids(found) == ids(expected)
        assert torch.equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])


def test_several_conversations_are_a_batch(talker, picture):
    one = turn({"type": "image", "image": picture}, {"type": "text", "text": "the colour?"})
    two = [{"role": "user", "content": "Q:Greece"}]
    batch = talker.chat([one, two])
    assert len(batch) == 2
    for layout, single in zip(batch.layouts, (one, two), strict=True):
        assert list(layout.token_ids[layout.start :]) == ids(talker.chat(single))[0]


def test_options_reach_the_template(talker):
    plain = [{"role": "user", "content": "Q:"}]
    assert talker.chat(plain, enable_thinking=True).texts[0].endswith("A:think")
    assert talker.chat(plain).texts[0].endswith("A:")

    def capital(country: str) -> str:
        """The capital.

        Args:
            country: Of which country.
        """

    assert "capital;" in talker.chat(plain, tools=[capital]).texts[0]
    begun = [*plain, {"role": "assistant", "content": "The capital"}]
    assert talker.chat(begun, continue_final_message=True).texts[0].endswith("The capital")
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    assert "[f]" in talker.chat([*plain, called]).texts[0]
    own = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    assert talker.chat(plain, chat_template=own).texts[0] == "Q:!"


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ("Q:", {}, "A text alone is vlm.prompt's"),
        ([], {}, "list of messages"),
        ([{"content": "Q"}], {}, '"role"'),
        (["Q"], {}, '"role"'),
        (turn({"type": "image", "url": "https://a.org/x.png"}), {}, "download it"),
        (turn({"type": "image", "base64": "iVBORw0"}), {}, "fetches nothing"),
        (turn({"type": "image", "path": "gone.png"}), {}, "no such file"),
        (turn({"type": "image"}), {}, "holds its picture"),
        (turn({"type": "video", "path": "a.mp4"}), {}, r"videos=\[frames\]"),
        (turn(3), {}, "A part of a message"),
        ([{"role": "user", "content": 3}], {}, "a list of parts"),
        (turn(), {"enable_thinkin": True}, "no option .*Did you mean 'enable_thinking'"),
        (turn(), {"continue_final_message": True, "add_generation_prompt": True}, "one of them"),
        (turn(), {"tokenize": True}, "leave tokenize="),
        (turn(), {"chat_template": "{{ raise_exception('roles must alternate') }}"}, "alternate"),
    ],
)
def test_what_is_no_conversation_is_said(talker, no_forward, messages, options, message):
    no_forward(talker)
    with pytest.raises(PromptError, match=message):
        talker.chat(messages, **options)


def test_a_language_model_is_shown_no_picture(load, picture):
    llama = load("llama")
    with pytest.raises(PromptError, match="language model without vision"):
        llama.chat(turn({"type": "image", "image": picture}), chat_template=OPTIONS)
