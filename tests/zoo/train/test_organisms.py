"""What is trained on is what the real processors make of a prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens.families.parts.fuyu_processor import FuyuReader
from vlm_lens.zoo.train.configs import decoder_layers, final_norm, is_joined
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.organisms import NAMES, ORGANISMS, find
from vlm_lens.zoo.train.pictures import Album
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World, load_world


@pytest.fixture(scope="module")
def world() -> World:
    """Load the package's tables, with few entities."""
    full = load_world()
    return replace(full, entities={d: e[:5] for d, e in full.entities.items()})


@pytest.mark.parametrize("kind", ORGANISMS, ids=lambda o: o.name)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_rows_are_what_the_processor_makes(
    kind: type[Organism], modality: str, world: World
) -> None:
    organism = kind()
    texts = [*world.texts(), *organism.texts]
    tokenizer = build_tokenizer(texts, organism.special_tokens)
    processor = organism.processor(tokenizer)
    if hasattr(processor.image_processor, "patchify_image"):  # Fuyu's own takes one picture a text
        processor = FuyuReader(processor.image_processor, processor.tokenizer, mantis=True)
    corpus = Corpus(world, tokenizer, organism, True)
    rng = np.random.default_rng(0)
    rows = corpus.context_rows(rng, 3, 2, modality) + corpus.bare_rows(rng, 1, modality)
    for row in rows:
        entities = {e.image: e for d in world.domains for e in world.entities[d]}
        pictures = [Image.open(world.pictures / p).convert("RGB") for p in row.pictures]
        text = "".join(
            f"Q:{'<image>' if modality == 'image' else question}\nA:{answer}\n\n"
            for question, answer in spoken(tokenizer, row.ids)
        )
        assert set(row.pictures) <= set(entities)
        if pictures:
            made = processor(text=[text], images=pictures, return_tensors="pt")
        elif isinstance(processor, FuyuReader):
            made = processor(text=[text])
        else:
            made = tokenizer([text], return_tensors="pt")
        assert made["input_ids"][0].tolist() == row.ids
        if pictures:
            album = Album(world.pictures, list(entities), organism, organism.processor(tokenizer))
            mine = organism.image_inputs(album.exact(row.pictures), 1)["pixel_values"]
            theirs = made["pixel_values"].reshape(mine.shape)
            assert torch.allclose(mine, theirs, atol=1e-6)


def spoken(tokenizer: object, ids: list[int]) -> list[tuple[str, str]]:
    """Read the pairs back from the tokens."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    pairs = [part.split("\nA:") for part in text.split("\n\n") if part]
    return [(question.removeprefix("Q:"), answer) for question, answer in pairs]


@pytest.mark.parametrize("kind", ORGANISMS, ids=lambda o: o.name)
def test_the_vision_language_model_starts_as_its_language_model(
    kind: type[Organism], world: World
) -> None:
    organism = kind()
    tokenizer = build_tokenizer([*world.texts(), *organism.texts], organism.special_tokens)
    language = organism.language_model(tokenizer, 0).eval()
    model = organism.model(tokenizer, language, 1).eval()
    assert is_joined(model)
    assert not is_joined(language)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids = torch.tensor([tokenizer.encode("Q:Peru\nA:")])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, language(ids).logits, atol=1e-5)
    assert len(decoder_layers(model)) == organism.shape.layers
    assert final_norm(model).weight.shape == (organism.shape.width,)
    named = dict(model.named_parameters())
    seeing = [n for n in named if n.startswith(organism.seeing)]
    others = {n for n in named if n not in seeing}
    assert seeing and len(others) == len(dict(language.named_parameters()))


def test_find_knows_every_name() -> None:
    assert {find(name).name for name in NAMES} == {o.name for o in ORGANISMS}
    with pytest.raises(KeyError, match="toy-idefics2"):
        find("toy-gpt")


def test_the_chat_template_of_idefics2_writes_what_it_was_trained_on(world: World) -> None:
    organism = find("toy-idefics2")()
    processor = organism.processor(build_tokenizer(world.texts(), organism.special_tokens))
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Rome"}]},
        {"role": "user", "content": "Greece"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "Q:<image>\nA:Rome\n\nQ:Greece\nA:"
