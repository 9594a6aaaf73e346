"""What engines cost beside one plain forward, and what logits of every position cost beside one.

```
python benchmarks/engines.py            CPU time, one thread
```

The first tables: torch hooks and nnsight on the same runs, of a LLaVA of 32 blocks of width 32,
where calls cost more than arithmetic. The last: 262,144 tokens, as Gemma 3 has, and 100 rows as
long as five examples; the blocks are narrow, so that it shows what the output layer costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from sweep import build, inputs_for
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_lens import ActivationPatch, HookedVLM, Last
from vlm_lens.recipes.parts.predict import first_tokens

N_ROWS, LENGTH, VOCABULARY = 100, 48, 262_144


def medians(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Seconds of CPU of each way, which run in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, run in ways.items():
            start = time.process_time()
            run()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def table(title: str, ways: dict[str, Callable[[], object]], runs: int) -> None:
    """Prints times beside that of the first way."""
    found = medians(ways, runs)
    base = next(iter(found.values()))
    print(f"{title}\n\n| way | ms | times the first |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / base:.2f} |")
    print(flush=True)


@torch.no_grad()
def engines(runs: int) -> None:
    """Hooks and nnsight."""
    vlm = HookedVLM(build("narrow", "cpu", torch.float32))
    inputs = inputs_for("cpu", torch.float32)
    ids = torch.arange(30, 54)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    edit = ActivationPatch("blocks.7.hook_resid_post", at=Last(), value=torch.ones(vlm.cfg.d_model))
    for what, given in (("24 tokens", text), ("576 image tokens", inputs)):
        prompt = vlm.as_prompt(given)
        ways: dict[str, Callable[[], object]] = {
            "one plain forward": lambda given=given: vlm.hf_model(**given, use_cache=False)
        }
        for engine in ("hooks", "nnsight"):
            options = {"engine": engine, "interventions": edit}
            ways[f"{engine}, one write"] = lambda o=options, p=prompt: vlm.run(p, **o)
            ways[f"{engine}, one write, each block's output read"] = lambda o=options, p=prompt: (
                vlm.run_with_cache(p, names_filter="blocks.*.hook_resid_post", **o)
            )
            ways[f"{engine}, every point read"] = lambda e=engine, p=prompt: vlm.run_with_cache(
                p, engine=e
            )
        table(f"engines, {what}", ways, runs)


@torch.no_grad()
def vocabulary(runs: int) -> None:
    """Logits of all positions, and of the last."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    vlm = HookedVLM(LlamaForCausalLM(config).eval())
    source = torch.Generator().manual_seed(0)
    rows = [
        vlm.as_prompt({"input_ids": torch.randint(3, VOCABULARY, (1, LENGTH), generator=source)})
        for _ in range(N_ROWS)
    ]

    def everywhere() -> None:
        for row in rows:
            vlm.run(row)[:, -1].argmax(-1)

    ways = {
        "the last position's, as the recipes ask": lambda: first_tokens(vlm, rows),
        "every position's": everywhere,
    }
    table(f"{VOCABULARY} tokens, {N_ROWS} rows of {LENGTH} positions", ways, runs)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines(args.runs)
    vocabulary(1)


if __name__ == "__main__":
    main()
