"""A config of any model type of transformers, made tiny: the default's own keys, small numbers."""

from __future__ import annotations

import copy
from typing import Any

from transformers import CONFIG_MAPPING

N_WORDS = 128
_FIRST_SPECIAL = 100  # special tokens stand above the words that prompts are made of

_TEXT = {
    "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "num_hidden_layers": 2, "vocab_size": N_WORDS, "max_position_embeddings": 512,
    "d_model": 32, "ffn_dim": 40, "d_ff": 40, "d_kv": 8, "num_heads": 4, "num_layers": 2,
    "word_embed_proj_dim": 32, "decoder_layers": 2, "encoder_layers": 2, "layers": 2, "depth": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "attention_heads": 4,
    "decoder_ffn_dim": 40, "encoder_ffn_dim": 40, "num_decoder_layers": 2, "n_layers": 2,
    "encoder_hidden_size": 24, "out_hidden_size": 32, "text_hidden_size": 32,
    "vocab_size_per_layer_input": N_WORDS, "hidden_size_per_layer_input": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_num_experts": 4, "moe_intermediate_size": 16, "n_shared_experts": 1, "moe_topk": 2,
    "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1, "moe_k": 2,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 12, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    "num_sliding_attention_heads": 4, "intermediate_size_mlp": 40, "sliding_window": 64,
    "sliding_window_size": 64, "first_k_dense_replace": 1, "share_expert_dim": 16,
    "dense_intermediate_size": 40, "shared_intermediate_size": 16, "rotary_dim": 8,
    "num_query_tokens": 4, "projection_dim": 32, "global_head_dim": 8,
    "num_global_key_value_heads": 2, "moe_shared_expert_intermediate_size": 16,
    "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1,
    "moe_latent_size": 16, "max_window_layers": 0, "query_pre_attn_scalar": 8,
    "attention_chunk_size": 64, "image_text_hidden_size": 32, "moe_hidden_size": 16,
}  # fmt: skip
_VISION = _TEXT | {
    "hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3,
    "num_heads": 3, "attention_heads": 3, "embed_dim": 24, "image_size": 32, "patch_size": 8,
    "mlp_dim": 36, "num_position_embeddings": 16, "window_size": 16, "d_model": 24,
    "encoder_attention_heads": 3, "encoder_ffn_dim": 36, "output_channels": 16,
    "vision_output_dim": 24, "projection_dim": 24, "text_hidden_size": 32,
}  # fmt: skip
_LISTS = {
    "deepstack_visual_indexes": [0], "fullatt_block_indexes": [1], "global_attn_indexes": [1],
    "mrope_section": [2, 1, 1], "xdrope_section": [1, 1, 1, 1],
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
            "forced_eos_token_id": None, "sep_token_id": 2, "_pad_token_id": 0}  # fmt: skip


def tiny_config(model_type: str, changes: dict[str, Any] | None = None) -> Any:
    """The default config of a type with small numbers.

    Args:
        model_type: Hugging Face's name of it.
        changes: What is otherwise: dotted keys -> value; `...` removes the key.
    """
    cls = CONFIG_MAPPING[model_type]
    made = _shrunk(cls().to_dict(), vision=False, ids={})
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        inner = made
        for name in path:
            inner = inner[name]
        if value is ...:
            inner.pop(last, None)
        else:
            inner[last] = copy.deepcopy(value)
    return cls(**made)


def _shrunk(given: dict[str, Any], *, vision: bool, ids: dict[str, int]) -> dict[str, Any]:
    table = _VISION if vision else _TEXT
    made = {}
    for key, value in given.items():
        if not isinstance(key, str):
            made[key] = value
        elif key in (
            "transformers_version",
            "_name_or_path",
            "architectures",
            "id2label",
            "label2id",
            "per_layer_config",
        ):
            continue
        elif isinstance(value, dict):
            tower = vision or "vision" in key or "visual" in key or "tower" in key
            made[key] = _shrunk(value, vision=tower, ids=ids)
        elif key in _SPECIAL:
            made[key] = None if value is None else _SPECIAL[key]
        elif _is_token(key) and isinstance(value, int) and not isinstance(value, bool):
            made[key] = ids.setdefault(key.replace("_index", "_id"), _FIRST_SPECIAL + len(ids))
        elif key in _LISTS and isinstance(value, list):
            made[key] = _LISTS[key]
        elif key in table and isinstance(value, int) and not isinstance(value, bool):
            made[key] = table[key]
        elif key in table and isinstance(value, list) and len(set(map(str, value))) == 1:
            made[key] = [table[key]] * len(value)
        elif isinstance(value, list) and len(value) > 2 and all(isinstance(v, str) for v in value):
            made[key] = _two(value)
        else:
            made[key] = copy.deepcopy(value)
    return made


def _two(kinds: list[str]) -> list[str]:
    """Kinds of two layers: the first two that differ."""
    first = kinds[0]
    return [first, next((k for k in kinds if k != first), first)]


def _is_token(key: str) -> bool:
    return key.endswith(("_token_id", "_token_index"))
