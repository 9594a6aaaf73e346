"""Where the time of the transfer recipe goes on a real vocabulary, and what bfloat16 saves.

    python benchmarks/transfer.py --task animal-young --dtype float32 bfloat16

Text to text on SmolLM2, one task, one seed, all controls: CPU seconds by step, how much of them is
matrix products (torch's profiler, in a run of its own), and how often the predicted tokens of each
dtype are those of the first.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vlm_lens import HookedVLM
from vlm_lens.recipes import CrossModalPatch
from vlm_lens.recipes.parts.vector_sources import TaskVectors, few_shot, open_prompts
from vlm_lens.tasks import Task

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def timed(owner: type, name: str, into: Counter[str]) -> None:
    """Adds the CPU seconds of a method's calls to a counter."""
    method: Callable = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return method(*args, **options)
        finally:
            into[name] += time.process_time() - start

    setattr(owner, name, call)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="animal-young")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = Task.load(options.task)
    spent: Counter[str] = Counter()
    for owner, name in (
        (TaskVectors, "each"),
        (CrossModalPatch, "sweep"),
        (CrossModalPatch, "_said"),
    ):
        timed(owner, name, spent)
    recipe = CrossModalPatch(task, source="text", query="text", seeds=1)
    reference = None
    for dtype in options.dtype:
        vlm = HookedVLM.from_pretrained(options.model, dtype=dtype)
        if reference is None:
            for what, prompts in (
                ("few-shot prompts", few_shot(task, "text", "text")),
                ("prompts of vectors", open_prompts(task, "text")),
            ):
                tokens = [len(vlm.to_tokens(p.text)) for p in prompts]
                print(f"{what}: {len(tokens)}, {sum(tokens)} tokens")
        spent.clear()
        start = time.process_time()
        result = recipe.run(vlm, progress=False)
        total = time.process_time() - start
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
        said = result.predictions["prediction"]
        reference = said if reference is None else reference
        agree = float((said.to_numpy() == reference.to_numpy()).mean())
        print(f"{dtype}: {total:.1f} s of CPU ({steps}); same tokens as the first: {agree:.3f}")
        print(result.summary()[["method", "mean"]].head(4).to_string(index=False))
        if options.profile:
            with profile(activities=[ProfilerActivity.CPU]) as run:
                vlm.run(vlm.as_prompt(list(few_shot(task, "text", "text")[:32])))
            events = run.key_averages()
            whole = sum(e.self_cpu_time_total for e in events)
            products = sum(e.self_cpu_time_total for e in events if e.key in PRODUCTS)
            print(f"matrix products: {products / whole:.0%} of a batch of 32 prompts")


if __name__ == "__main__":
    main()
