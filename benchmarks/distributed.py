"""One sweep in this process, in processes of this machine, and on Ray; and what a chunk costs.

    python benchmarks/distributed.py --vectors 84 --workers 2

Seconds are of the sweep alone, after a first sweep by which workers have the model; what it takes
to have them is a column of its own. Ratios are of one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from vlm_lens import HookedVLM
from vlm_lens.distributed import Here, Loky, Ray
from vlm_lens.sweep import Grid

N_CHUNKS = 200


def timed(call: Callable[[], object], n: int) -> float:
    seconds = []
    for _ in range(n):
        clock = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - clock)
    return median(seconds)


def nothing(vlm: HookedVLM, chunk: int):
    yield chunk


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="toy-llava")
    parser.add_argument("--vectors", type=int, default=84)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    vlm = HookedVLM.from_pretrained(asked.model)
    prompt = vlm.prompt("Q:France\nA:")
    vectors = {str(i): torch.randn(vlm.cfg.d_model) for i in range(asked.vectors)}
    grid = Grid("blocks.*.hook_resid_post", at=[-1, -2, -3], vectors=vectors)
    rows = []
    for name, place in (
        ("this process", None),
        (f"loky, {asked.workers}", Loky(asked.workers)),
        (f"Ray, {asked.workers}", Ray(workers=asked.workers)),
    ):
        clock = time.perf_counter()
        with Here(vlm) if place is None else place.open(vlm) as workers:
            swept = vlm.sweep(prompt, grid, on=workers, progress=False)
            started = time.perf_counter() - clock

            def once(workers=workers):
                vlm.sweep(prompt, grid, on=workers, progress=False)

            def empty(workers=workers):
                list(workers.run(nothing, range(N_CHUNKS)))

            rows.append((name, started, timed(once, asked.runs), timed(empty, 3) / N_CHUNKS))
    print(f"{asked.model}, {len(swept)} variants, one thread a process")
    print("| where | first sweep, with start (s) | sweep (s) | ratio | an empty chunk (ms) |")
    print("|---|---|---|---|---|")
    for name, started, seconds, chunk in rows:
        ratio = rows[0][2] / seconds
        print(f"| {name} | {started:.1f} | {seconds:.2f} | {ratio:.2f} | {1000 * chunk:.2f} |")


if __name__ == "__main__":
    main()
