"""What attribution patching of every head at every position costs, against plain forwards.

    python benchmarks/attribution.py --layers 16 --width 256 --positions 300

Two texts of as many tokens on a Llama of random weights, and the difference of two logits at the
last position. A plain forward has neither hooks nor gradients; the count of forwards that the
method needs is 4 (one of the one prompt, one with a backward, as two more, of the other).
Beside it: torch alone (a forward and a backward to the embeddings), TransformerLens's
`attribution_patch` (embedding, heads and MLPs at every position), and the way of its tutorials, a
cache of activations with a backward hook at every `hook_z`. All ways alternate in one process;
seconds are of CPU time on one thread, ratios medians over runs. Numbers of the ways are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_lens import HookedVLM, LogitDiff
from vlm_lens.attribution import attribute

Z = "blocks.*.attn.hook_z"
ANSWERS = (17, 29)


def build(layers: int, width: int) -> LlamaForCausalLM:
    """A Llama of random weights."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=width * 4, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def difference(logits: Tensor) -> Tensor:
    """The measure, of logits `[..., pos, vocab]`."""
    last = logits.reshape(-1, logits.shape[-1])[-1]
    return last[ANSWERS[0]] - last[ANSWERS[1]]


def ways(args: argparse.Namespace) -> dict:
    """Name -> a function that runs it once."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model = build(args.layers, args.width)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(5, 1000, (2, 1, args.positions), generator=generator)
    vlm = HookedVLM(build(args.layers, args.width))
    prompts = [
        vlm.as_prompt({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        for ids in (clean, corrupt)
    ]
    own = build(args.layers, args.width)
    bridge = build_bridge_from_module(
        own, "LlamaForCausalLM", hf_config=own.config, dtype=own.dtype, device=clean.device
    )
    names = [f"blocks.{i}.attn.hook_z" for i in range(args.layers)]

    @torch.no_grad()
    def plain():
        return model(clean, use_cache=False).logits

    def torch_alone():
        embedded = model.get_input_embeddings()(corrupt).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        return torch.autograd.grad(difference(logits), embedded)[0]

    def ours():
        found = attribute(vlm, *prompts, Z, measure=LogitDiff(*ANSWERS), heads="each", at="each")
        gap = found.about["clean"] - found.about["corrupt"]
        return torch.from_numpy(found.values.to_numpy() * gap)  # [layer, head, pos]

    def cache_and_backward():
        with torch.no_grad():
            _, there = bridge.run_with_cache(clean, names_filter=names)
        here, slopes = {}, {}  # by the name that was asked for: the bridge's own are others
        reads = [(n, lambda x, hook, n=n: here.update({n: x.detach()})) for n in names]
        slopes_of = [(n, lambda x, hook, n=n: slopes.update({n: x})) for n in names]
        with bridge.hooks(reads, slopes_of):
            value = difference(bridge(corrupt))
            torch.autograd.grad(value, list(bridge.parameters())[0])
        products = [((there[n] - here[n]) * slopes[n]).sum(-1)[0].T for n in names]
        return torch.stack(products)

    def theirs():
        scores = attribution_patch(bridge, clean, corrupt, difference).node_scores
        found = torch.zeros(args.layers, 8, args.positions)
        for node, score in scores.items():
            if node.kind == "attn_head_out":
                found[node.layer, node.head, node.position] = score
        return found

    return {
        "plain forward": plain,
        "torch alone, forward and backward": torch_alone,
        "vlm_lens": ours,
        "TransformerLens, cache and backward": cache_and_backward,
        "TransformerLens, attribution_patch": theirs,
    }


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--positions", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = ways(args)
    values = {name: run() for name, run in runs.items()}
    expected = values["vlm_lens"]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.runs):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    for name, mine in times.items():
        ratio = statistics.median(m / b for m, b in zip(mine, times["plain forward"], strict=True))
        off = ""
        if values[name].shape == expected.shape:
            error = float((values[name] - expected).abs().max() / expected.abs().max())
            off = f"  differs from vlm_lens by {error:.1e} of the largest"
        print(f"{name:36} {statistics.median(mine):7.3f} CPU-seconds  {ratio:5.2f}x plain{off}")


if __name__ == "__main__":
    main()
