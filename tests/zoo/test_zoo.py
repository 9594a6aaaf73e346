"""The shipped folders are ordinary Hugging Face folders."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    FuyuForCausalLM,
    Idefics2ForConditionalGeneration,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralForCausalLM,
    PersimmonForCausalLM,
)

from vlm_lens import HookedVLM, zoo
from vlm_lens.tasks import Task

LANGUAGE = {
    "toy-vicuna": LlamaForCausalLM,
    "toy-mistral": MistralForCausalLM,
    "toy-persimmon": PersimmonForCausalLM,
}
SEEING = {
    "toy-llava": LlavaForConditionalGeneration,
    "toy-idefics2": Idefics2ForConditionalGeneration,
    "toy-fuyu": FuyuForCausalLM,
}
NAMES = (*LANGUAGE, *SEEING)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid the network to transformers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


def test_names_lists_what_is_shipped() -> None:
    assert set(NAMES) <= set(zoo.names())


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(KeyError, match="toy-llava"):
        zoo.path("toy-gpt")


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small_and_complete(name: str) -> None:
    folder = zoo.path(name)
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "train_log.jsonl"} <= files
    assert "README.md" in files
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10_000_000
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert lines and all({"stage", "step", "loss", "seconds"} <= set(line) for line in lines)


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_model_loads_and_answers(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(zoo.path(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    assert type(model) is LANGUAGE[name]
    text = "Q:Greece\nA:Athens\n\nQ:Italy\nA:Rome\n\nQ:Peru\nA:Lima\n\nQ:France\nA:"
    inputs = tokenizer([text, "Q:France\nA:"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        tokens = model(**inputs).logits[:, -1].argmax(-1)
    assert [tokenizer.decode([t]) for t in tokens.tolist()] == ["Paris", "France"]


@pytest.mark.parametrize("name", ["toy-llava", "toy-idefics2"])
def test_vision_language_model_loads_and_names_a_picture(name: str) -> None:
    folder = zoo.path(name)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is SEEING[name]
    image = Task.load("country-capital")["France"].image
    inputs = processor(text="Q:<image>\nA:", images=image, return_tensors="pt")
    with torch.no_grad():
        token = model(**inputs).logits[0, -1].argmax()
    assert processor.tokenizer.decode([token]) == "France"


@pytest.mark.parametrize("name", SEEING)
def test_the_library_reads_pictures_as_the_model_was_trained(name: str) -> None:
    vlm = HookedVLM.from_pretrained(name)
    assert type(vlm.hf_model) is SEEING[name]
    task = Task.load("country-capital")
    rows = [task[country] for country in ("France", "Japan", "Brazil", "Kenya")]
    prompts = [task.query(row, "image") for row in rows]
    tokens = vlm.run(vlm.prompt(prompts))[:, -1].argmax(-1)
    named = [vlm.tokenizer.decode([t]) == row.input for t, row in zip(tokens, rows, strict=True)]
    assert sum(named) >= 3


def test_embeddings_are_tied_and_the_last_tower_block_is_not_read() -> None:
    model = AutoModelForImageTextToText.from_pretrained(zoo.path("toy-llava"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"


@pytest.mark.parametrize("name", zoo.names())
def test_every_card_says_what_was_planted(name: str) -> None:
    said = zoo.planted(name)
    assert said and said in (zoo.path(name) / "README.md").read_text(encoding="utf-8")
    assert (said == "nothing") == (name == "smol-llava")
    if name.endswith(("vicuna", "mistral", "persimmon", "llava", "fuyu")) and said != "nothing":
        assert "three phases" in said and "in text" in said
