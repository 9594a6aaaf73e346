"""What it costs to see where the last position looks, at every block, against the plain forward.

    python benchmarks/attention.py --positions 4000

Beside it: transformers' own eager `output_attentions`, and TransformerLens's bridge reading its
patterns. Each runs in a process of its own for memory, and alternating in one process for time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import vlm_lens.attention  # noqa: F401  what it imports counts as memory of every way
from vlm_lens import HookedVLM

WAYS = ("plain", "vlm.attention", "eager", "transformer_lens")


def build(layers: int, width: int, *, eager: bool = False) -> LlamaForCausalLM:
    """A Llama of random weights."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=width * 2, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=8192,
        attn_implementation="eager" if eager else "sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def runner(way: str, args: argparse.Namespace):
    """A function that runs one way once."""
    model = build(args.layers, args.width, eager=way == "eager")
    ids = torch.randint(5, 1000, (1, args.positions), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if way == "vlm.attention":
        vlm = HookedVLM(model)
        prompt = vlm.as_prompt({"input_ids": ids, "attention_mask": mask})
        return lambda: vlm.attention(prompt)
    if way == "transformer_lens":
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        model.set_attn_implementation("eager")  # without it the bridge's patterns are not formed
        bridge = build_bridge_from_module(
            model, "LlamaForCausalLM", hf_config=model.config, dtype=model.dtype, device=ids.device
        )
        names = lambda name: name.endswith("hook_pattern")  # noqa: E731

        def bridged():
            with torch.no_grad():
                return bridge.run_with_cache(ids, names_filter=names)

        return bridged

    @torch.no_grad()
    def plain():
        return model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1,
            output_attentions=way == "eager",
        )  # fmt: skip

    return plain


def main() -> None:
    """Prints ratios of time (alternating) and of peak memory (one process each)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--positions", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", default="plain,vlm.attention,eager")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        run = runner(args.memory, args)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    ways = [way for way in args.ways.split(",") if way in WAYS]
    peaks = {}
    for way in ways:
        sizes = [f"--{name}={getattr(args, name)}" for name in ("layers", "width", "positions")]
        done = subprocess.run([sys.executable, __file__, *sizes, f"--memory={way}"],
                              stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
        before, after = map(int, done.stdout.split()[-2:])
        peaks[way] = after / 1024
        print(f"{way}: peak {after / 1024:.0f} MB, {(after - before) / 1024:.0f} MB of it in the "
              "run", flush=True)  # fmt: skip
    runs = {way: runner(way, args) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.runs):
        for way, run in runs.items():
            start = time.process_time()
            run()
            times[way].append(time.process_time() - start)
    for way in ways:
        ratio = statistics.median(m / b for m, b in zip(times[way], times["plain"], strict=True))
        print(f"{way:18} {statistics.median(times[way]):7.2f} CPU-seconds  {ratio:5.2f}x time  "
              f"{peaks[way] / peaks['plain']:5.2f}x peak memory")  # fmt: skip


if __name__ == "__main__":
    main()
