"""What each causal language model needs beside small numbers: sizes that belong together."""

from __future__ import annotations

from typing import Any

from reach.types import CHANGES as PICTURED
from reach.types import DOTS3

_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
# latent attention shares its keys' rotary part among heads, and has as many keys as queries
_LATENT = {"num_key_value_heads": 4, "head_dim": 4}
_GEMMA3N = {"intermediate_size": 40, "activation_sparsity_pattern": [0.0, 0.0],
            "laurel_rank": 4, "num_kv_shared_layers": 0}  # fmt: skip
_QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
          "indexer_budget": 8, "indexer_compress_ratio": 2}  # fmt: skip
# two blocks with the shared transformer, so that there is something to share
_ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
          "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 2,
          "hybrid_layer_ids": [1, 3]}  # fmt: skip
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}

CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt2", "gpt-sw3", "gpt_bigcode", "openai-gpt"), _GPT2),
    **dict.fromkeys(("gptj", "codegen"), _GPT2 | {"rotary_dim": 4}),
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32",
         "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"), _LATENT
    ),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    **dict.fromkeys(("bamba", "granitemoehybrid"), {"mamba_n_heads": 8, "mamba_d_head": 8}),
    "bailing_hybrid": _LATENT | {"num_expert_group": 1, "num_experts_per_token": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 64, "encoder_config.hidden_size_global": 32,
        "decoder_config.hidden_size_global": 32,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _PLAIN, "sliding_attention": _PLAIN}
    },
    "cpmant": {"dim_ff": 40, "dim_head": 8},
    "ctrl": _GPT2 | {"dff": 40},
    "dbrx": {
        "attn_config.rope_theta": 1e4, "attn_config.kv_n_heads": 2, "attn_config.clip_qkv": 8.0,
        "n_heads": 4, "ffn_config.ffn_hidden_size": 40,
    },
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2},
    "dots1": {"num_local_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": PICTURED["dots3_note"],
    "dots3_note_text": DOTS3,
    "falcon": {"ffn_hidden_size": 128},
    "gemma3n_text": _GEMMA3N,
    "kimi_linear": _LATENT | {"num_experts_per_token": 2, "num_expert_group": 1},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {
        "ffn_hidden_size": 40, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, **_LATENT
    },
    "mamba2": {"num_heads": 8},
    "marian": {"decoder_vocab_size": 128},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "audio_config.num_blocks": 2, "audio_config.ext_pw_out_channel": 32,
        "audio_config.depthwise_separable_out_channel": 32, "audio_config.nemo_conv_channels": 8,
        "vision_config.crop_size": 32,
    },
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {f"text_config.{k}": v for k, v in _QWEN4.items()},
    "recurrent_gemma": {"lru_width": 32},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {
        "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 16, "shape_embed_dim": 8,
        "shape_vocab_size": 16,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xlm": {"emb_dim": 32, "n_heads": 4},
    "xlnet": {"d_head": 8, "n_layer": 2, "n_head": 4, "d_inner": 40},
    "xlstm": {"num_blocks": 2, "embedding_dim": 32, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA | { "mamba_headdim": 16, "n_mamba_heads": 4, "mamba_ngroups": 1},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

_DRAFTS = (
    "it drafts for another model and reads that one's keys and values, so it runs on no prompt"
)

# why a type is not even tried
NOT_TRIED = {"gemma4_assistant": _DRAFTS, "gemma4_unified_assistant": _DRAFTS}
