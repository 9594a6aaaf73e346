"""The loop on a small language model: the same after a kill, and what it writes is the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from vlm_lens.model.assembled import base_name, put_together
from vlm_lens.zoo.smol.corpus import IMAGE
from vlm_lens.zoo.smol.export import export
from vlm_lens.zoo.smol.recipe import Recipe
from vlm_lens.zoo.smol.training import Trainer

SHORT = Recipe(
    tower_steps=1, tower_views=4, steps=4, names=2, captions=2, facts=3, samples=2, rank=2,
    own_samples=4, evaluate_every=4,
)  # fmt: skip


@pytest.fixture
def make(world, tokenizer, language, tmp_path):
    def trainer(folder, recipe=SHORT):
        return Trainer(
            recipe, world, tokenizer.backend_tokenizer, language, tmp_path / folder, save_every=2
        )

    return trainer


@pytest.mark.slow
def test_gone_on_with_after_a_kill(make, monkeypatch, tmp_path):
    whole = make("whole")
    best = whole.run()
    assert best["step"] == 4 and 0 <= best["named"] <= 1
    killed = make("killed")
    own, calls = killed.drawn, []

    def dies(step):
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return own(step)

    monkeypatch.setattr(killed, "drawn", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = make("killed")
    resumed.run()
    assert calls == [0, 1, 2, 3]
    for part in ("eye", "update"):
        for name, value in whole.weights()[part].items():
            assert torch.equal(value, resumed.weights()[part][name]), name
    with pytest.raises(ValueError, match="another recipe"):
        make("killed", replace(SHORT, lr=1.0)).run()
    assert len(list(tmp_path.glob("*/train_log.jsonl"))) == 2


@pytest.mark.slow
def test_what_is_written_is_the_model(make, base, tokenizer, tmp_path):
    trainer = make("run")
    trainer.run()
    rounded = {
        part: {k: v.half().float() for k, v in trainer.weights()[part].items()}
        for part in ("eye", "update")
    }
    trainer.load_weights(rounded)
    folder = tmp_path / "model"
    config = type(base.config).from_dict(base.config.to_dict())
    export(rounded["eye"], rounded["update"], tokenizer, config, folder)
    assert base_name(folder) == "smollm2-135m"
    model = put_together(LlavaConfig.from_pretrained(folder), folder, base).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    picture = Image.open(trainer.views.folder / trainer.views.names[3])
    text = "Q:<image>\nA:"
    given = processor(text=text, images=[picture.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        own = model(**given).logits
        ids = given["input_ids"]
        ids = torch.where(ids == model.config.image_token_id, IMAGE, ids)
        embedded = trainer._embedded(ids, trainer.tokens()[3:4])
        merged = trainer.language.merged(trainer.update)
        mine = trainer.language.logits(trainer.language.read(merged, embedded).last)
    torch.testing.assert_close(own[..., : mine.shape[-1]], mine, rtol=1e-3, atol=1e-3)
    model.save_pretrained(tmp_path / "whole")  # an ordinary folder
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        assert torch.equal(again(**given).logits, own)
