"""Command line: `python -m vlm_lens.zoo.train toy-llava`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vlm_lens.zoo.smol import run as smol
from vlm_lens.zoo.train.curriculum import scaled
from vlm_lens.zoo.train.loop import Trainer
from vlm_lens.zoo.train.organisms import NAMES, find
from vlm_lens.zoo.train.world import load_world

_MODELS = Path(__file__).parents[1] / "models"


def main(argv: list[str] | None = None) -> None:
    """Train a shipped model; a model that sees trains its language model first, if need be."""
    parser = argparse.ArgumentParser(prog="python -m vlm_lens.zoo.train", description=main.__doc__)
    parser.add_argument("model", choices=(*NAMES, smol.NAME))
    parser.add_argument(
        "--work", type=Path, help="checkpoints and log; runs/zoo/MODEL-SEED by default"
    )
    parser.add_argument("--out", type=Path, default=_MODELS, help="where the model folders go")
    parser.add_argument("--tables", type=Path, help="a folder with tables/ and pictures/")
    parser.add_argument("--seed", type=int, help="by default that of the shipped weights")
    parser.add_argument("--steps", type=int, help="total steps, shared out among the stages")
    parser.add_argument("--minutes", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of smol-llava; cuda takes minutes")
    parser.add_argument("--base", type=Path, help="of smol-llava: a folder with SmolLM2")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.model == smol.NAME:
        smol.run(args)
        return
    organism = find(args.model)()
    seed = organism.seed if args.seed is None else args.seed
    stages = scaled(organism.stages, args.steps) if args.steps else organism.stages
    work = args.work or Path("runs/zoo") / f"{organism.name}-{seed}"
    trainer = Trainer(
        organism, load_world(args.tables), work, stages=stages, seed=seed, out=args.out
    )
    trainer.run(args.model, args.minutes)


if __name__ == "__main__":
    main()
