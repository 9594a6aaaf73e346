"""The folder that ships: tower, projector and update in half precision, without the base model.

The update is in the format of the library peft, so that `PeftModel.from_pretrained` reads it too;
the language model itself comes from the Hub or its package when the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaConfig, PreTrainedTokenizerBase

from vlm_lens.zoo.smol.language import KINDS, SCALE
from vlm_lens.zoo.smol.vision import IMAGE_TOKENS, processor, vision_config

__all__ = ["BASE", "export"]

BASE = "smollm2-135m"


def export(
    eye: Mapping[str, Tensor],
    update: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    text_config: Any,
    folder: Path,
) -> None:
    """Write the folder, but for its card.

    Args:
        eye: The state of `vision.Eye`.
        update: The state of `language.LowRank`.
        tokenizer: SmolLM2's.
        text_config: SmolLM2's.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    text_config.vocab_size = len(tokenizer)
    if hasattr(text_config, "weights"):
        del text_config.weights  # said when it is loaded, as it may be another file then
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config,
        image_token_index=image,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        bos_token_id=text_config.bos_token_id,
        eos_token_id=text_config.eos_token_id,
        pad_token_id=text_config.pad_token_id,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    processor(tokenizer).save_pretrained(folder)
    names = {"tower.": "model.vision_tower.", "projector.": "model.multi_modal_projector."}
    seeing = {}
    for name, value in eye.items():
        start = next(s for s in names if name.startswith(s))
        seeing[names[start] + name.removeprefix(start)] = value.half().contiguous()
    save_file(seeing, folder / "seeing.safetensors", metadata={"format": "pt"})
    low = {}
    for kind, module in KINDS.items():
        for part in "ab":
            for block, value in enumerate(update[f"{part}.{kind}"]):
                name = f"base_model.model.model.layers.{block}.{module}.lora_{part.upper()}.weight"
                low[name] = value.half().contiguous()
    save_file(low, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = len(update["a.q"][0])
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": SCALE * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in KINDS.values()],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=2) + "\n")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
