"""A tiny random Mantis-Fuyu checkpoint: the old weight names, and Mantis's prompt form."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from safetensors.torch import save_file
from transformers import FuyuConfig, FuyuForCausalLM, FuyuProcessor
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from families.tiny_words import tokenizer

PATCH = 6
SPECIAL = ("|ENDOFTEXT|", "|SPEAKER|", "|NEWLINE|", "|IMAGE|", "|ENDOFIMAGE|", "<0x04>")


def processor() -> FuyuProcessor:
    pictures = FuyuImageProcessorPil(
        size={"height": 60, "width": 90}, patch_size={"height": PATCH, "width": PATCH}
    )
    return FuyuProcessor(pictures, tokenizer(SPECIAL))


def build() -> FuyuForCausalLM:
    config = FuyuConfig(
        patch_size=PATCH,
        image_token_id=5,
        text_config={
            "model_type": "persimmon", "vocab_size": 270, "hidden_size": 32,
            "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 1024, "hidden_act": "relu2", "qk_layernorm": True,
            "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
        },
    )  # fmt: skip
    return tiny.randomize(FuyuForCausalLM(config))


def old_names(model: FuyuForCausalLM) -> dict:
    """Weights as Mantis's own class named them."""
    renamed = {}
    for name, weight in model.state_dict().items():
        name = name.removeprefix("model.")
        if name.startswith("language_model."):
            name = name.replace("language_model.", "language_model.model.", 1)
        renamed[f"language_model.{name}" if name.startswith("lm_head") else name] = weight
    return renamed


def save(folder: Path, *, mantis: bool = True) -> Path:
    model = build()
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    if mantis:
        save_file(old_names(model), folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = ["MFuyuForCausalLM"]
        (folder / "config.json").write_text(json.dumps(config))
        file = folder / "processor_config.json"
        said = json.loads(file.read_text())
        said["processor_class"] = "MFuyuProcessor"
        file.write_text(json.dumps(said))
    return folder
