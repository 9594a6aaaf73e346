"""Memory of a bank and of a tuned lens's fit as positions go by.

Prints the process's resident memory after each share of 100,000 positions of toy-mistral.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vlm_lens import HookedVLM
from vlm_lens.lenses import Bank, LatentLens, TunedLens, tuned_fit
from vlm_lens.tasks import Task

POSITIONS, PARTS = 100_000, 5


def resident() -> float:
    """Resident memory of this process, in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def texts(vlm: HookedVLM, positions: int) -> list[str]:
    """Few-shot prompts with so many positions, all different."""
    tasks = [Task.load(t) for t in ("country-capital", "animal-latin", "food-color")]
    found: list[str] = []
    count = seed = 0
    while count < positions:
        for task in tasks:
            found.append(task.examples(5, seed=seed).text)
            count += len(vlm.to_tokens(found[-1]))
        seed += 1
    return found


def bank(vlm: HookedVLM, every: Sequence[str]) -> None:
    """Builds a bank in parts, each going on with the one before, and searches it."""
    for part in range(1, PARTS + 1):
        with tempfile.TemporaryDirectory() as folder:
            mine = every[: len(every) * part // PARTS]
            made = Bank.build(vlm, mine, Path(folder) / "bank", per_token=10**9, progress=False)
            built = resident()
            LatentLens(bank=made, k=5).run(vlm, "Q:Peru\nA:")
            size = sum(f.stat().st_size for f in made.folder.glob("entries-*")) / 2**20
            print(
                f"bank of {len(made):>7,} entries x {len(made.points)} layers ({size:.0f} MiB on "
                f"disk): {built:.0f} MiB, {resident():.0f} after a search"
            )


def fit(vlm: HookedVLM, every: Sequence[str]) -> None:
    """Fits a tuned lens on as many positions, and prints memory on the way."""
    per_step = 512
    steps = POSITIONS // per_step
    step = tuned_fit._Fit._step

    def counted(self: tuned_fit._Fit, number: int) -> float:
        loss = step(self, number)
        if (number + 1) % (steps // PARTS) == 0:
            print(f"fit, {(number + 1) * per_step:>7,} positions: {resident():.0f} MiB")
        return loss

    tuned_fit._Fit._step = counted  # type: ignore[method-assign]
    TunedLens.fit(vlm, list(every), steps=steps, positions=per_step, batch_size=32,
                  heldout=0.01, progress=False)  # fmt: skip


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--positions", type=int, default=POSITIONS)
    options = parser.parse_args()
    vlm = HookedVLM.from_pretrained("toy-mistral")
    vlm.run("Q:Peru\nA:")
    print(f"before: {resident():.0f} MiB")
    every = texts(vlm, options.positions)
    print(f"{len(every):,} texts: {resident():.0f} MiB")
    bank(vlm, every)
    fit(vlm, every)


if __name__ == "__main__":
    main()
