"""What each type needs beside small numbers: sizes that belong together, and why some are not."""

from __future__ import annotations

from typing import Any

_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_VQ_WORDS = {"<image>": 10, **{f"IMGIMG{c}Z": 20 + i for i, c in enumerate("ABCDEFGH")}}
_EMU_WORDS = {"<image>": 10, **{f"<|visual token {i:06d}|>": 20 + i for i in range(32)},
              "<|extra_200|>": 11}  # fmt: skip
_VIT = {"model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
        "vision_use_head": False, "model_args": {"embed_dim": 24}}  # fmt: skip
# in the place of a tower of timm, which needs torchvision: what it gives is a map, too
CONVNEXT = {"hidden_sizes": [8, 16, 24], "depths": [1, 1, 1],
             "num_stages": 3, "patch_size": 2, "image_size": 32, "hidden_size": 24}  # fmt: skip

_PINPOINTS = [[32, 64], [64, 32]]
_SECTIONS = {"text_config.rope_parameters": _MROPE}

DOTS3 = {
    "num_key_value_heads": 4, "shared_experts_intermediate_size": 16, "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
    "swa_qk_nope_head_dim": 8, "swa_head_dim": 12, "swa_v_head_dim": 8,
}  # fmt: skip

TIMM = ("fast_vlm", "perception_lm")

CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("glm46v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "video_llama_3"), _SECTIONS
    ),
    "blip": {"image_text_hidden_size": 32},
    "gemma4": {
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        }
    },
    "gemma4_unified": {
        "vision_config": {
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "model_patch_size": 8,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "num_soft_tokens": 16,
            "output_proj_dims": 32,
        }
    },
    "idefics": {"additional_vocab_size": 0},
    "kimi_k25": {
        "text_config.head_dim": 4,
        "text_config.num_key_value_heads": 4,
        "projection_hidden_size": 24,
        "vision_config.num_attention_heads": 3,
        "vision_config.rope_parameters": {"rope_type": "axial", "rope_theta": 1e4},
        "vision_config.pos_emb_height": 4,
        "vision_config.pos_emb_width": 4,
    },
    "llava_next_video": {"image_grid_pinpoints": _PINPOINTS, "image_seq_length": 16},
    "qwen2_5_omni_thinker": _SECTIONS | {"vision_start_token_id": 110, "vision_end_token_id": 111},
    "instructblip": {"image_token_index": 110},
    "instructblipvideo": {"video_token_index": 110},
    "inkling_mm_model": {"vision_config.patch_size": 8},
    **dict.fromkeys(
        ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"),
        {"image_token_id": 110, "insert_layer_id": 0, "vision_config.insert_layer_id": 0},
    ),
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "vision-encoder-decoder": {"encoder.image_size": 32, "encoder.patch_size": 8},
    "step3p7": {"text_config.sliding_window": 16},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 4},
    "udop": {"image_size": 32, "patch_size": 8},
    "aria": {
        "projector_patch_to_query_dict": {16: 4},
        "max_value_projector_patch_to_query_dict": 4,
        "text_config.moe_num_shared_experts": 1,
    },
    "chameleon": {
        "vocabulary_map": _VQ_WORDS,
        "vq_config.num_embeddings": 8,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.latent_channels": 16,
        "vq_config.embed_dim": 16,
        "vq_config.resolution": 16,
        "vq_config.num_res_blocks": 1,
    },
    "cohere2_vision": {"alignment_intermediate_size": 48},
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE}
    },
    "cosmos3_edge": {
        "projector_hidden_size": 48,
        "text_config.rope_parameters": _MROPE,
        "vision_config.num_patches": 16,
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "text_config.n_group": 1,
        "text_config.topk_group": 1,
        "vision_config.sam_config.downsample_channels": [16, 24],
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 16,
        "canvas_length": 8,
    },
    "dots3_note": {
        **{f"text_config.{name}": value for name, value in DOTS3.items()},
        "vision_config.adapter_in_dim": 24,
        "vision_config.adapter_out_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.adapter_out_dim": 32,
        "audio_config.num_key_value_heads": 4,
        "audio_config.downsample_hidden_size": 8,
        "audio_config.conv_output_size": 128,
    },
    "emu3": {
        "vocabulary_map": _EMU_WORDS,
        "vq_config.codebook_size": 32,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.hidden_size": 32,
        "vq_config.attn_resolutions": [],
        "vq_config.num_res_blocks": 1,
        "vq_config.temporal_downsample_factor": 1,
        "vq_config.num_attention_heads": 1,
        "image_token_id": 10,
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        },
        "text_config.moe_intermediate_size": [16, 12],
    },
    "fast_vlm": {"vision_config": {"model_type": "convnext", **CONVNEXT}},
    "florence2": {
        "vision_config.depths": [1, 1],
        "vision_config.patch_size": [7, 3],
        "vision_config.patch_stride": [4, 2],
        "vision_config.patch_padding": [3, 1],
        "vision_config.patch_prenorm": [False, True],
        "vision_config.embed_dim": [8, 24],
        "vision_config.num_heads": [2, 3],
        "vision_config.num_groups": [2, 3],
        "vision_config.window_size": 4,
        "vision_config.projection_dim": 32,
    },
    "gemma3n": {
        "text_config.intermediate_size": 40,
        "vision_soft_tokens_per_image": 16,
        "audio_config.conf_num_hidden_layers": 1,
        "audio_config.hidden_size": 32,
        "text_config.activation_sparsity_pattern": [0.0, 0.0],
        "text_config.laurel_rank": 4,
        "text_config.num_kv_shared_layers": 0,
    },
    "glm5_next": {
        "text_config.num_key_value_heads": 4,
        "text_config.index_kpool": 2,
        "text_config.qk_rope_head_dim": 0,
        "text_config.qk_head_dim": 8,
        "text_config.head_dim": 0,
    },
    "granite4_vision": {
        "image_grid_pinpoints": _PINPOINTS,
        "image_seq_length": 16,
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [1, 1, 1, 1],
        "vision_config.hidden_size": 64,
        "vision_config.num_attention_heads": 4,
    },
    "hunyuan_vl": {
        "text_config.rope_parameters": _MROPE | {"mrope_section": [1, 1, 1, 1]},
        "text_config.head_dim": 8,
        "vision_config.max_image_size": 64,
        "vision_config.img_max_token_num": 16,
    },
    "janus": {
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.latent_channels": 8,
        "vq_config.num_embeddings": 16,
        "vq_config.projection_dim": 32,
        "vq_config.image_token_embed_dim": 32,
        "vision_config.projection_dim": 32,
        "vision_config.num_image_tokens": 16,
    },
    "kosmos-2": {"text_config.embed_dim": 32, "latent_query_num": 4},
    "kosmos-2.5": {
        "vision_config.patch_embed_hidden_size": 24,
        "text_config.embed_dim": 32,
        "latent_query_num": 4,
    },
    "llama4": {
        "text_config.moe_layers": [1],
        "text_config.no_rope_layers": [1, 0],
        "vision_config.projector_input_dim": 24,
        "vision_config.projector_output_dim": 24,
        "vision_config.vision_output_dim": 24,
        "vision_config.intermediate_size": 96,
    },
    "minimax_m3_vl": {"projector_hidden_size": 48, "merged_hidden_size": 128},
    "mistral_large4": {
        "text_config.kv_source_layers": [0, 1],
        "text_config.no_rope_layers": [1, 0],
        "text_config.num_key_value_heads": 4,
    },
    "molmo2": {
        "image_patch_id": 110,
        "image_start_token_id": 111,
        "image_end_token_id": 112,
        "adapter_config.vision_feature_layer": [1, 0],
        "adapter_config.hidden_size": 24,
        "vision_config.image_size": [32, 32],
    },
    "muse_glimmer": {"projector_hidden_size": 48, "out_hidden_size": 96},
    "muse_spark": {
        "out_hidden_size": 96,
        "audio_config.num_hidden_layers": 4,
        "projector_hidden_size": 48,
        "audio_config.hidden_sizes": [8, 8, 8, 8],
    },
    "nemotron_h_omni": {
        "image_token_id": 110,
        "vision_config.patch_dim": 192,
        "vision_config.video_patch_dim": 384,
        "vision_hidden_size": 24,
        "projector_hidden_size": 48,
        "vision_config.max_img_size": 64,
    },
    "perception_lm": {"vision_config": _VIT, "vision_use_cls_token": False},
    "pix2struct": {
        "vision_config.hidden_size": 32,
        "vision_config.num_attention_heads": 4,
        "vision_config.patch_embed_hidden_size": 24,
    },
    "pp_formulanet": {
        "vision_config.post_conv_in_channels": 16,
        "vision_config.post_conv_mid_channels": 16,
        "vision_config.post_conv_out_channels": 24,
        "vision_config.decoder_hidden_size": 32,
    },
    "qwen3_omni_moe_thinker": _SECTIONS
    | {
        "vision_start_token_id": 110,
        "vision_end_token_id": 111,
        "audio_config.downsample_hidden_size": 16,
    },
    "unlimited_ocr": {
        "text_config.num_key_value_heads": 4,
        "vision_config.sam_config.downsample_channels": [16, 24],
    },
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 8,
        "text_config.indexer_budget": 8,
        "text_config.indexer_compress_ratio": 2,
    },
}
