"""Whatever changes numbers changes a fingerprint; what does not, does not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from vlm_lens import HookedVLM
from vlm_lens.reproduce.identity import (
    library_versions,
    named_model_facts,
    processor_digest,
    weights_digest,
)
from vlm_lens.reproduce.setup import ReproduceError, Setup
from vlm_lens.reproduce.store import Store
from vlm_lens.tasks import Task


@pytest.fixture
def vlm(checkpoints):
    return HookedVLM.from_pretrained(checkpoints["llava"])


def test_processor_and_tokenizer_settings_count(vlm):
    before = processor_digest(vlm)
    vlm.prompt(["Q:a\nA:", "Q:longer than the other\nA:"])  # padding is no setting
    assert processor_digest(vlm) == before
    vlm.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    changed = processor_digest(vlm)
    vlm.tokenizer.add_tokens(["anewtoken"])
    assert len({before, changed, processor_digest(vlm)}) == 3


def test_weights_of_a_model_that_is_not_loaded_count(checkpoints, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(checkpoints["llm"], tmp_path / "llm")
    before = named_model_facts(str(folder))
    assert before == named_model_facts(str(folder)) and before["weights"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    digest = weights_digest(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    assert weights_digest(model) != digest
    model.save_pretrained(folder)
    assert named_model_facts(str(folder))["weights"] != before["weights"]


def test_a_changed_base_or_task_is_refused(vlm, checkpoints, tmp_path):
    setup = Setup(str(checkpoints["llava"]), "llava", str(checkpoints["llm"]), ("food-color",))
    Store(tmp_path / "out", setup, vlm)
    Store(tmp_path / "out", setup, vlm)  # the same again
    shipped = Task.load("food-color")
    fewer = replace(shipped, test=shipped.test[:-1])
    for other in (replace(setup, base=None), replace(setup, tasks=(fewer,))):
        with pytest.raises(ReproduceError, match="(base|tasks)"):
            Store(tmp_path / "out", other, vlm)


def test_versions_name_what_draws_decodes_and_clusters():
    found = library_versions()
    assert {"numpy", "scikit-learn", "pillow", "tokenizers", "torch", "vlm_lens"} <= set(found)
    assert all(found[name] for name in ("numpy", "pillow", "tokenizers"))
