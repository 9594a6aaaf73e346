"""What information flow costs: attention cut in every window of blocks, between three groups.

    python benchmarks/flow.py

A LLaVA of 32 layers and 576 image tokens, random weights; one prompt, image -> question,
image -> last and question -> last, each cut in 32 windows: 96 variants in one replayed sweep,
against the plain forward and against one hooked forward a variant (some of them, scaled).
"""

from __future__ import annotations

import argparse
import statistics

import torch
from sweep import Clock, build, inputs_for

from vlm_lens import AttentionKnockout, HookedVLM, Images, Last, Text
from vlm_lens.measures import Prob


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full", type=int, default=3, help="hooked forwards that are timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vlm = HookedVLM(build("small", "cpu", torch.float32))
    prompt = vlm.as_prompt(inputs_for("cpu", torch.float32))
    image, last = Images(), Last()
    question = Text(special=True) - last
    first = prompt.layout.image[0].positions[-1]
    question = [p for _, p in question.resolve(prompt.layout) if p > first]
    edges = {
        "image -> question": (question, image),
        "image -> last": (last, image),
        "question -> last": (last, question),
    }
    n = vlm.cfg.n_layers
    windows = [tuple(range(max(0, i - args.window // 2), min(n, i + args.window // 2 + 1)))
               for i in range(n)]  # fmt: skip
    cuts = [AttentionKnockout(queries, keys, layers=window)
            for queries, keys in edges.values() for window in windows]  # fmt: skip
    clock = Clock("cpu", args.runs, cpu_time=True)
    ways = {
        "plain forward": lambda: vlm.run(prompt),
        "sweep": lambda: vlm.sweep(prompt, cuts, measure=Prob(40), engine="replay", progress=False),
    }
    for run in ways.values():
        run()
    times = {name: [clock.once(run) for _ in range(args.runs)] for name, run in ways.items()}
    plain, swept = (statistics.median(t) for t in times.values())
    some = cuts[:: max(1, len(cuts) // args.full)][: args.full]
    full = statistics.mean(clock.once(lambda c=c: vlm.run(prompt, interventions=c)) for c in some)
    print(f"{len(cuts)} variants, {prompt.length} positions, CPU-seconds of one thread:")
    print(f"plain forward {plain:.2f}, sweep {swept:.2f}: {swept / plain:.2f} plain forwards")
    print(f"one hooked forward a variant: {full * len(cuts) / plain:.0f} plain forwards")


if __name__ == "__main__":
    main()
