"""Train smol-llava and write its folder: what `python -m vlm_lens.zoo.train smol-llava` does."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from vlm_lens.errors import ModelError
from vlm_lens.storage.cache import cache_folder
from vlm_lens.zoo.smol.export import export
from vlm_lens.zoo.smol.language import Language
from vlm_lens.zoo.smol.recipe import Recipe
from vlm_lens.zoo.smol.training import Trainer
from vlm_lens.zoo.train.world import load_world

__all__ = ["NAME", "base_folder", "run"]

NAME = "smol-llava"
_BASE = "SmolLM2-135M-Instruct"


def base_folder(given: Path | None = None) -> Path:
    """Where SmolLM2 is, dequantised: the folder given, or the library's own cache.

    Raises:
        ModelError: It is not there.
    """
    if given is not None:
        found = [given]
    else:
        found = sorted(cache_folder("gguf").glob(f"{_BASE}*"), key=lambda p: p.stat().st_mtime)
    found = [folder for folder in found if (folder / "model.safetensors").is_file()]
    if not found:
        where = given or cache_folder("gguf")
        raise ModelError(
            f"{where} holds no {_BASE}: `make real` installs and dequantises it, or pass a folder "
            "of transformers with --base."
        )
    return found[-1]


def run(args: argparse.Namespace) -> None:
    """Train, or go on, and export the best checkpoint."""
    base = base_folder(args.base)
    recipe = Recipe()
    if args.seed is not None:
        recipe = replace(recipe, seed=args.seed)
    if args.steps:
        recipe = recipe.scaled(args.steps)
    work = args.work or Path("runs/zoo") / f"{NAME}-{recipe.seed}"
    config = AutoConfig.from_pretrained(base)
    language = Language.of(load_file(base / "model.safetensors"), config.to_dict())
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    trainer = Trainer(
        recipe, load_world(args.tables), tokenizer, language, work, device=args.device
    )
    best = trainer.run(60 * args.minutes if args.minutes else None)
    if not best:
        return
    weights = torch.load(work / "best.pt", map_location="cpu", weights_only=True)
    folder = args.out / NAME
    export(weights["eye"], weights["update"], AutoTokenizer.from_pretrained(base), config, folder)
    shutil.copy(work / "train_log.jsonl", folder / "train_log.jsonl")
    (folder / "recipe.json").write_text(json.dumps(weights["recipe"], indent=2) + "\n")
