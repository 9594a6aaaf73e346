"""Whatever changes numbers changes a fingerprint; what does not, does not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from vlm_lens import HookedVLM
from vlm_lens.reproduce.identity import identity, named_model_facts
from vlm_lens.reproduce.setup import ReproduceError, Setup
from vlm_lens.reproduce.store import Store
from vlm_lens.storage.identity import processor_digest
from vlm_lens.storage.weights import weights_digest
from vlm_lens.tasks import Task


@pytest.fixture
def vlm(checkpoints):
    return HookedVLM.from_pretrained(checkpoints["llava"])


def test_processor_and_tokenizer_settings_count(vlm):
    before = processor_digest(vlm.processor)
    vlm.prompt(["Q:a\nA:", "Q:longer than the other\nA:"])  # padding is no setting
    assert processor_digest(vlm.processor) == before
    vlm.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    changed = processor_digest(vlm.processor)
    vlm.tokenizer.add_tokens(["anewtoken"])
    assert len({before, changed, processor_digest(vlm.processor)}) == 3


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
    for _ in range(2):  # the second time the same again
        with Store(tmp_path / "out", setup, vlm):
            pass
    shipped = Task.load("food-color")
    fewer = replace(shipped, test=shipped.test[:-1])
    for other in (replace(setup, base=None), replace(setup, tasks=(fewer,))):
        with (
            pytest.raises(ReproduceError, match="(base|tasks)"),
            Store(tmp_path / "out", other, vlm),
        ):
            pass


def test_what_differs_is_said_in_words(vlm, checkpoints, tmp_path):
    setup = Setup(str(checkpoints["llava"]), "llava", None, ("food-color", "country-capital"))
    with Store(tmp_path / "out", setup, vlm):
        pass
    other = replace(setup, tasks=("food-color",), seeds=5, base=str(checkpoints["llm"]))
    with pytest.raises(ReproduceError) as raised, Store(tmp_path / "out", other, vlm):
        pass
    said = str(raised.value)
    assert "number of seeds (3 there, 5 now)" in said and "{" not in said and len(said) < 900
    assert "tasks (food-color, country-capital there, food-color now)" in said


def test_one_process_at_a_time(vlm, checkpoints, tmp_path):
    setup = Setup(str(checkpoints["llava"]), "llava", None, ("food-color",))
    with (
        Store(tmp_path / "out", setup, vlm),
        pytest.raises(ReproduceError, match="Another process"),
        Store(tmp_path / "out", setup, vlm),
    ):
        pass


def test_versions_name_what_draws_decodes_and_clusters(vlm, checkpoints):
    found = identity(Setup(str(checkpoints["llava"]), "llava", None, ("food-color",)), vlm)
    names = ("numpy", "scikit-learn", "pillow", "tokenizers", "torch", "vlm_lens")
    assert all(found[f"version of {name}"] for name in names)
