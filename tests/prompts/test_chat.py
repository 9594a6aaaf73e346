"""Few-shot prompts as conversations, against what is written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
