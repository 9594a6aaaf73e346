"""What it costs to capture every point but attention weights, against the plain forward."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vlm_lens import HookedVLM

IMAGE_TOKEN = 5


def build() -> LlavaForConditionalGeneration:
    """12 layers of width 256 behind a CLIP tower of 24 x 24 patches."""
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        image_size=336, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN,
                         vision_feature_layer=-2)  # fmt: skip
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def main() -> None:
    """Alternates both in one process and prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--profile", action="store_true", help="where the capturing run's time goes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build()
    vlm = HookedVLM(model)
    ids = [1, 20, *[IMAGE_TOKEN] * 576, *range(30, 50)]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(),
              "pixel_values": torch.randn(1, 3, 336, 336)}  # fmt: skip
    prompt = vlm.as_prompt(inputs)

    @torch.no_grad()
    def plain() -> None:
        model(**inputs, use_cache=False)

    def hooked() -> None:
        vlm.run(prompt)

    def capture() -> None:
        vlm.run_with_cache(prompt)

    variants = {"plain": plain, "hooked, nothing read": hooked, "every point read": capture}
    for run in variants.values():
        run()
    if args.profile:
        with torch.profiler.profile() as profile:
            capture()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
        return
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(args.runs):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    cache = vlm.run_with_cache(prompt)[1]
    print(f"{len(cache)} activations, {sum(v.nbytes for v in cache.values()) / 1e6:.0f} MB, "
          f"{len(ids)} positions, {args.runs} alternating runs, {args.threads} thread(s), "
          f"torch {torch.__version__}")  # fmt: skip
    walls = {name: statistics.median(w for w, _ in t) for name, t in times.items()}
    cpus = {name: statistics.median(c for _, c in t) for name, t in times.items()}
    for name in variants:
        ratio = statistics.median(
            mine[0] / base[0] for mine, base in zip(times[name], times["plain"], strict=True)
        )
        print(f"{name:22} {walls[name] * 1e3:8.1f} ms wall  {cpus[name] * 1e3:8.1f} ms cpu  "
              f"{walls[name] / walls['plain']:5.3f}x of medians  {ratio:5.3f}x median ratio  "
              f"{cpus[name] / cpus['plain']:5.3f}x cpu")  # fmt: skip


if __name__ == "__main__":
    main()
