"""Tiny language models of types that no family describes: real classes, random weights."""

from __future__ import annotations

from typing import Any

import tiny
import transformers
from torch import nn

_S = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MHA = {k: v for k, v in _S.items() if k != "num_key_value_heads"}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

FULL, BRANCHES, RESIDUAL = "full", "branches", "residual"

# name -> class without its ending, options, and what is found: attention and MLP within a block;
# what each adds; the stream between blocks alone
TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2", _GPT, FULL),
    "gpt_neox": ("GPTNeoX", _MHA, FULL),
    "gpt_neo": ("GPTNeo", {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                           "attention_types": [[["global", "local"], 1]],
                           "max_position_embeddings": 64}, FULL),
    "gptj": ("GPTJ", _GPT | {"rotary_dim": 4}, FULL),
    "phi": ("Phi", _S, FULL),
    "phi3": ("Phi3", _S, FULL),
    "olmo": ("Olmo", _S, FULL),
    "olmo2": ("Olmo2", _S, FULL),
    "smollm3": ("SmolLM3", _S, FULL),
    "granite": ("Granite", _S | {"residual_multiplier": 0.5, "logits_scaling": 4.0,
                                 "embedding_multiplier": 2.0, "attention_multiplier": 0.3}, FULL),
    "stablelm": ("StableLm", _S, FULL),
    "starcoder2": ("Starcoder2", _S, FULL),
    "glm4": ("Glm4", _S | {"head_dim": 8}, FULL),
    "helium": ("Helium", _S | {"head_dim": 8}, FULL),
    "nemotron": ("Nemotron", _S, FULL),
    "exaone4": ("Exaone4", _S, FULL),
    "seed_oss": ("SeedOss", _S | {"head_dim": 8}, FULL),
    "ernie4_5": ("Ernie4_5", _S, FULL),
    "arcee": ("Arcee", _S, FULL),
    "mixtral": ("Mixtral", _S | {"num_local_experts": 4}, BRANCHES),
    "qwen3_moe": ("Qwen3Moe", _S | _MOE, BRANCHES),
    "olmoe": ("Olmoe", _S | {"num_experts": 4, "num_experts_per_tok": 2}, BRANCHES),
    "gpt_oss": ("GptOss", _S | {"num_local_experts": 4, "head_dim": 8}, BRANCHES),
    "llama4_text": ("Llama4", _S | {"num_local_experts": 4, "head_dim": 8,
                                    "intermediate_size_mlp": 48}, BRANCHES),
    "deepseek_v3": ("DeepseekV3", _S | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1}, BRANCHES),
    "qwen3_next": ("Qwen3Next", _S | _MOE | {
        "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8}, BRANCHES),
    "jamba": ("Jamba", _S | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
                             "expert_layer_period": 2, "expert_layer_offset": 1,
                             "mamba_d_state": 8}, FULL),
    "lfm2": ("Lfm2", _S | {"layer_types": ["conv", "full_attention"]}, BRANCHES),
    "falcon": ("Falcon", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                          "num_attention_heads": 4}, FULL),
    "bloom": ("Bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, BRANCHES),
    "doge": ("Doge", _S | {"head_dim": 8}, RESIDUAL),  # other kernels where gradients are recorded
    "bitnet": ("BitNet", _S, BRANCHES),
    "diffllama": ("DiffLlama", _S, BRANCHES),
    "mamba2": ("Mamba2", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                          "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1,
                          "expand": 2}, RESIDUAL),
}  # fmt: skip


def build(name: str, attention: str | None = None, **changes: Any) -> nn.Module:
    """A model by its name."""
    title, options, _ = TEXTS[name]
    config_class = {"Llama4": "Llama4TextConfig"}.get(title, f"{title}Config")
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(title, f"{title}ForCausalLM")
    config = getattr(transformers, config_class)(**(options | changes))
    if attention is not None:
        config._attn_implementation = attention
    return tiny.randomize(getattr(transformers, model_class)(config))


def options(name: str) -> dict[str, Any]:
    """What a text model of a type needs, where it is not described: its own sizes."""
    return TEXTS[name][1] if name in TEXTS else {}
