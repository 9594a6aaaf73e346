"""Command line: `python -m vlm_lens.zoo.train toy-llava`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vlm_lens.zoo.train.loop import Trainer
from vlm_lens.zoo.train.stages import STAGES, scaled
from vlm_lens.zoo.train.world import load_world

_MODELS = Path(__file__).parents[1] / "models"


def main(argv: list[str] | None = None) -> None:
    """Train a shipped model; `toy-llava` trains `toy-vicuna` first, unless it is done."""
    parser = argparse.ArgumentParser(prog="python -m vlm_lens.zoo.train", description=main.__doc__)
    parser.add_argument("model", choices=["toy-vicuna", "toy-llava"])
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="checkpoints and log")
    parser.add_argument("--out", type=Path, default=_MODELS, help="where the model folders go")
    parser.add_argument("--tables", type=Path, help="a folder with tables/ and pictures/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="total steps, shared out among the stages")
    parser.add_argument("--minutes", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    stages = scaled(STAGES, args.steps) if args.steps else STAGES
    world = load_world(args.tables)
    trainer = Trainer(world, args.work, stages=stages, seed=args.seed, out=args.out)
    trainer.run(args.model, args.minutes)


if __name__ == "__main__":
    main()
