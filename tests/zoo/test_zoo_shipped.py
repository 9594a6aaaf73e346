"""The shipped folders are ordinary Hugging Face folders."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from vlm_lens import zoo

NAMES = ("toy-llava", "toy-vicuna")


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


def test_language_model_loads_and_answers() -> None:
    model = AutoModelForCausalLM.from_pretrained(zoo.path("toy-vicuna")).eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("toy-vicuna"))
    assert isinstance(model, LlamaForCausalLM)
    text = "Q:Greece\nA:Athens\n\nQ:Italy\nA:Rome\n\nQ:Peru\nA:Lima\n\nQ:France\nA:"
    inputs = tokenizer([text, "Q:France\nA:"], return_tensors="pt", padding=True)
    with torch.no_grad():
        tokens = model(**inputs).logits[:, -1].argmax(-1)
    assert [tokenizer.decode([t]) for t in tokens.tolist()] == ["Paris", "France"]


def test_vision_language_model_loads_and_names_a_picture() -> None:
    folder = zoo.path("toy-llava")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    pictures = zoo.path("toy-llava").parents[2] / "tasks" / "pictures"
    image = Image.open(pictures / "country" / "fr.png").convert("RGB")
    inputs = processor(text="Q:<image>\nA:", images=image, return_tensors="pt")
    grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
    images = (inputs["input_ids"] == model.config.image_token_id).sum()
    assert images == grid**2 == model.config.image_seq_length
    with torch.no_grad():
        token = model(**inputs).logits[0, -1].argmax()
    assert processor.tokenizer.decode([token]) == "France"


def test_embeddings_are_tied_and_the_last_tower_block_is_not_read() -> None:
    model = AutoModelForImageTextToText.from_pretrained(zoo.path("toy-llava"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"
