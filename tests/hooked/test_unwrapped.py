"""What is no plain model: unwrapped and said, or refused with what to pass instead."""

from __future__ import annotations

import copy
import json
import types
import warnings

import pytest
import tiny
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaModel,
    Olmo2Config,
    Olmo2ForCausalLM,
    ViTConfig,
    ViTModel,
    pipeline,
)
from typecheck import unchecked

from vlm_lens import HookedVLM
from vlm_lens.errors import ModelError

P = "blocks.1.attn.hook_q"


@pytest.fixture(scope="module")
def model():
    return tiny.build("llama")


def test_a_peft_model_is_unwrapped_and_its_adapter_acts(model):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora).eval()
    with pytest.warns(UserWarning, match="PeftModel.* was unwrapped.*LORA"):
        vlm = HookedVLM(wrapped, tiny.tokenizer("pieces"))
    inputs = vlm.prompt("Q:Greece\nA:").inputs
    with torch.no_grad():
        expected = wrapped(**inputs).logits
    logits, cache = vlm.run_with_cache(inputs)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, tiny.plain_logits(model, inputs))
    seen = {}
    q = wrapped.base_model.model.model.layers[1].self_attn.q_proj
    handle = q.register_forward_hook(lambda m, i, o: seen.update(q=o))
    with torch.no_grad():
        wrapped(**inputs)
    handle.remove()
    assert torch.equal(cache[P].flatten(-2), seen["q"])
    zero = vlm.run_with_hooks(inputs, fwd_hooks=[(P, lambda x, hook: x * 0)])
    assert not torch.equal(zero, logits)
    with wrapped.disable_adapter():
        assert torch.equal(vlm.run(inputs), tiny.plain_logits(model, inputs))


def test_prompt_tuning_is_refused(model):
    peft = pytest.importorskip("peft")
    tuned = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="get_base_model"):
        HookedVLM(peft.get_peft_model(copy.deepcopy(model), tuned))


def test_what_stands_around_a_model_is_named(model):
    wrap = unchecked(HookedVLM)
    reader = tiny.tokenizer("pieces")
    for given, message in (
        (torch.nn.DataParallel(model), "model.module"),
        (torch.compile(model), "model._orig_mod"),
        (LlamaModel(model.config), "AutoModelForCausalLM"),
        (pipeline("text-generation", model=model, tokenizer=reader), r"pipe\.model"),
        ("toy-llava", r"from_pretrained\('toy-llava'\)"),
        (type(model), r"LlamaForCausalLM.from_pretrained"),
        (torch.nn.Linear(2, 2), "has no config"),
        (reader, "wraps a transformers model"),
        (None, "wraps a transformers model"),
    ):
        with pytest.raises(ModelError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrap(given)


def test_a_model_of_another_kind_is_told_what_to_load_instead(model):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    bert, vit = BertConfig(vocab_size=32, **small), ViTConfig(image_size=8, patch_size=4, **small)
    for given, message in (
        (BertModel(bert), "BertModel has no output layer"),
        (ViTModel(vit), "ViTModel has no output layer"),
        (BertForMaskedLM(bert), "BertForMaskedLM gives logits of tokens that are hidden"),
    ):
        with pytest.raises(ModelError, match=f"{message}.*AutoModelForCausalLM"):
            unchecked(HookedVLM)(given)


def test_a_model_without_a_list_of_blocks_is_refused_with_what_to_write():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    given = Olmo2ForCausalLM(Olmo2Config(vocab_size=64, num_hidden_layers=2, **sizes)).eval()
    given.model.layers = torch.nn.Sequential(*given.model.layers)
    with pytest.raises(ModelError, match=r"0 lists of modules.*\(none\).*a family of its own"):
        HookedVLM(given)


def test_what_is_no_processor_is_named(model):
    for given, message in (
        ("toy-llava", "AutoProcessor.from_pretrained"),
        (model, "not LlamaForCausalLM"),
        (types.SimpleNamespace(), "not SimpleNamespace"),
        (tiny.reader("clip-llama").image_processor, "pictures alone"),
    ):
        with pytest.raises(ModelError, match=message):
            HookedVLM(model, given)


def test_a_folder_with_an_adapter_names_its_base(tmp_path):
    about = {"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"adapter, made for llava-hf/llava-1\.5-7b-hf"):
        HookedVLM.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="does not name"):
        HookedVLM.from_pretrained(tmp_path)
