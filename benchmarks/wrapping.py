"""What it costs to wrap a model over loading it: CPU seconds, and of one tiny forward beside it.

    python benchmarks/wrapping.py

A text model of 32 blocks and a tower of 27, once of a registered family (LLaVA) and once found by
structure (Cohere2 Vision), and a mixture of experts by structure. Widths are small: what is
measured is the finding, not the forward.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
)

from vlm_lens import HookedVLM

TEXT = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": 64,
          "patch_size": 16, "vision_use_head": False}  # fmt: skip


def models(layers: int, tower: int) -> dict[str, torch.nn.Module]:
    """The models, by name."""
    text = TEXT | {"num_hidden_layers": layers}
    vision = SiglipVisionConfig(**VISION, num_hidden_layers=tower)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return {
        "llava (registered)": LlavaForConditionalGeneration(
            LlavaConfig(text_config=LlamaConfig(**text), vision_config=vision,
                        image_token_index=900)),
        "cohere2_vision (by structure)": Cohere2VisionForConditionalGeneration(
            Cohere2VisionConfig(text_config=Cohere2Config(**text), vision_config=vision,
                                image_token_id=900, alignment_intermediate_size=128)),
        "qwen3_moe (by structure)": Qwen3MoeForCausalLM(Qwen3MoeConfig(**text, **experts)),
    }  # fmt: skip


def main() -> None:
    """Prints one line a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tower", type=int, default=27)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ids = torch.arange(5, 11)[None]
    print(f"{'model':<32}{'wrapping':>12}{'forward':>12}   CPU seconds, least of {args.repeats}")
    for name, model in models(args.layers, args.tower).items():
        model.eval()
        HookedVLM(model)
        times = {"wrap": [], "forward": []}
        for _ in range(args.repeats):
            start = time.process_time()
            HookedVLM(model)
            times["wrap"].append(time.process_time() - start)
            start = time.process_time()
            with torch.no_grad():
                model(input_ids=ids)
            times["forward"].append(time.process_time() - start)
        print(f"{name:<32}{min(times['wrap']):>12.3f}{min(times['forward']):>12.3f}")


if __name__ == "__main__":
    main()
