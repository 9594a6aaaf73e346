"""What exact patching of many pairs costs, against one hooked forward for each place.

    python benchmarks/pairs.py --pairs 50

(a) Pairs of country-capital by picture on toy-idefics2, every block, every head, each of {pictures,
text, last position}, in one call, against a plain forward with one plain torch hook for each of
them (timed on a sample, scaled).
(b) Pairs by name on toy-mistral, every block, every head, all positions together, against
TransformerLens's `get_act_patch_attn_head_out_all_pos` on the same pairs as one batch.

Times are seconds of CPU time on one thread; numbers of both ways are compared.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vlm_lens import HookedVLM, Images, Last, Pairs, Text
from vlm_lens.pairs import Pair, task_pairs

Z = "blocks.*.attn.hook_z"
PLACES = (Images(), Text(), Last())


def timed(run: Callable[[], object], runs: int) -> tuple[float, object]:
    """The median of the CPU time of some runs, and what the last gave."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        found = run()
        times.append(time.process_time() - start)
    return statistics.median(times), found


def peak() -> float:
    """Peak resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def hooked(vlm: HookedVLM, pair: Pair, spots: list[tuple]) -> list[float]:
    """The shares of (block, head, place): a plain forward with one torch hook for each."""
    names = [f"blocks.{i}.attn.hook_z" for i in range(vlm.cfg.n_layers)]
    logits, cache = vlm.run_with_cache(pair.clean, names_filter=names)
    bound = pair.measure.bind(vlm, pair.clean)
    run = vlm.hf_model
    ends = [float(bound.values(x)) for x in (logits, run(**pair.corrupt.inputs).logits)]
    stack = vlm.architecture.decoder.stack.path
    shares = []
    for layer, head, at in spots:
        both = pair.positions.resolve(at)
        to, of = [p for _, p in both.values()], [p for _, p in both]
        columns = slice(head * vlm.cfg.d_head, (head + 1) * vlm.cfg.d_head)
        value = cache[names[layer]][0, of, head]

        def put(module, args, to=to, columns=columns, value=value):
            x = args[0].clone()
            x[0, to, columns] = value
            return (x, *args[1:])

        module = run.get_submodule(f"{stack}.{layer}.self_attn.o_proj")
        handle = module.register_forward_pre_hook(put)
        found = float(bound.values(run(**pair.corrupt.inputs, use_cache=False).logits))
        handle.remove()
        shares.append((found - ends[1]) / (ends[0] - ends[1]))
    return shares


def pictures(args: argparse.Namespace) -> None:
    """(a) Every block, head and kind of place, by picture."""
    vlm = HookedVLM.from_pretrained("toy-idefics2")
    drawn = task_pairs(vlm, "country-capital", args.pairs, examples=args.examples, seed=0)
    pairs = drawn.solved(vlm) if args.examples else drawn
    length = statistics.median(pair.clean.length for pair in pairs)
    n_layers, n_heads = vlm.cfg.n_layers, vlm.cfg.n_heads
    count = n_layers * n_heads * len(PLACES) * len(pairs)

    def at_once():
        return pairs.patch(vlm, Z, heads="each", at=list(PLACES), progress=False)

    at_once()
    before = peak()
    seconds, found = timed(at_once, args.runs)
    grew = peak() - before
    generator = np.random.default_rng(0)
    every = [(i, h, k) for i in range(n_layers) for h in range(n_heads) for k in range(3)]
    sample = [every[i] for i in generator.permutation(len(every))[: args.sample]]
    by_hand, off = [], 0.0
    for number in (0, len(pairs) // 2):
        spots = [(i, h, PLACES[k]) for i, h, k in sample]
        spent, shares = timed(lambda n=number, s=spots: hooked(vlm, pairs[n], s), 1)
        by_hand.append(spent / len(sample))
        ours = [found.values.to_numpy()[(number, *place)] for place in sample]
        off = max(off, float(np.abs(np.array(ours) - shares).max()))
    each = statistics.mean(by_hand)
    print(f"(a) {len(pairs)} pairs, {length:.0f} positions, {count} variants: one call "
          f"{seconds:.2f} s; one hooked forward each {each * count:.1f} s "
          f"({1000 * each:.1f} ms, from {2 * len(sample)} of them): {each * count / seconds:.1f} "
          f"times; largest difference of a share {off:.1e}; peak memory {before + grew:.0f} MB, "
          f"{grew:.0f} MB of it beyond the first call's")  # fmt: skip


def words(args: argparse.Namespace) -> None:
    """(b) Every block and head at all positions, by name, beside TransformerLens."""
    from transformer_lens import patching

    from vlm_lens.interop.transformer_lens import to_bridge

    vlm = HookedVLM.from_pretrained("toy-mistral")
    drawn = task_pairs(vlm, "country-capital", args.pairs, modality="text", examples=2, seed=0)
    length = Counter(pair.clean.length for pair in drawn).most_common(1)[0][0]
    pairs = Pairs(tuple(pair for pair in drawn if pair.clean.length == length))
    bound = [pair.measure.bind(vlm, pair.clean) for pair in pairs]
    clean, corrupt = (
        torch.cat([getattr(pair, side).inputs["input_ids"] for pair in pairs])
        for side in ("clean", "corrupt")
    )
    bridge = to_bridge(vlm)

    def metric(logits: Tensor) -> Tensor:
        return torch.stack([b.values(x[None]) for b, x in zip(bound, logits, strict=True)]).mean()

    @torch.no_grad()
    def theirs() -> Tensor:
        _, cache = bridge.run_with_cache(clean)
        return patching.get_act_patch_attn_head_out_all_pos(bridge, corrupt, cache, metric)

    def ours():
        return pairs.patch(vlm, Z, heads="each", progress=False)

    ours()
    theirs()
    seconds, found = timed(ours, args.runs)
    other, values = timed(theirs, args.runs)
    ends = [p.mean() for p in pairs.measured(vlm)]
    gaps = np.subtract(*pairs.measured(vlm))
    raw = (found.values.to_numpy() * gaps[:, None, None]).mean(0) + ends[1]
    off = float(np.abs(raw - values.numpy()).max())
    print(f"(b) {len(pairs)} pairs, {length} positions, {raw.size * len(pairs)} variants: one call "
          f"{seconds:.2f} s; TransformerLens {other:.2f} s: {other / seconds:.1f} times; largest "
          f"difference of a mean logit difference {off:.1e}")  # fmt: skip


def main() -> None:
    """Prints both cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--examples", type=int, default=0, help="of case (a)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--cases", default="ab")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case, run in (("a", pictures), ("b", words)):
        if case in args.cases:
            run(args)


if __name__ == "__main__":
    main()
