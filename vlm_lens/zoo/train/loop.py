"""The training loop: stages, checkpoints, resume, log, export.

Every step draws from a generator made of (seed, stage, step), so a run that was killed and
resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from vlm_lens.zoo.train.configs import is_joined
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.curriculum import Stage, learning_rate
from vlm_lens.zoo.train.curves import draw_curves
from vlm_lens.zoo.train.interchange import Tally
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.pictures import Album
from vlm_lens.zoo.train.step import step_loss
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World

__all__ = ["Trainer"]


class Trainer:
    """Trains a language model, and the vision-language model made from it, stage by stage.

    Args:
        organism: Which models.
        world: The tables.
        work: Folder of checkpoints and logs; a run found there is resumed.
        stages: The curriculum; the organism's own by default.
        seed: The seed of everything.
        out: Folder in which `{model}/` folders are written.
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
    """

    def __init__(
        self,
        organism: Organism,
        world: World,
        work: Path,
        *,
        stages: Sequence[Stage] | None = None,
        seed: int = 0,
        out: Path | None = None,
        save_every: int = 100,
        log_every: int = 25,
    ) -> None:
        self.organism = organism
        self.world = world
        self.work = Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.stages = tuple(stages or organism.stages)
        self.seed = seed
        self.out = out
        self.save_every = save_every
        self.log_every = log_every
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(
            [*world.texts(), *organism.texts], organism.special_tokens
        )
        self.processor = organism.processor(self.tokenizer)
        self.corpora = {
            sees: Corpus(world, self.tokenizer, organism, sees) for sees in (False, True)
        }
        self.model: nn.Module = organism.language_model(self.tokenizer, seed)
        self._album: Album | None = None
        self._spent = 0.0

    def run(self, until: str | None = None, minutes: float | None = None) -> nn.Module:
        """Train up to and including the stages of a model, and export each finished model.

        Args:
            until: The last model wanted; the vision-language model by default.
            minutes: Stop after so long, whatever is done; the checkpoint stays.

        Returns:
            The model as it is at the end.
        """
        torch.use_deterministic_algorithms(True, warn_only=True)
        stop = time.monotonic() + 60 * minutes if minutes else float("inf")
        language_only = until == self.organism.language_name
        wanted = [s for s in self.stages if not (s.sees and language_only)]
        saved = self._load()
        first = saved["stage"] if saved else 0
        if first >= len(wanted):
            return self._finished(wanted[-1])
        for number, stage in enumerate(wanted):
            if stage.sees:
                self._join()
            if saved and number == first:
                self.model.load_state_dict(saved["model"])
            if number < first:
                continue
            resume = saved if number == first else None
            if not self._train(number, stage, resume, stop):
                break
            is_last = number + 1 == len(wanted) or wanted[number + 1].sees != stage.sees
            if is_last:
                self.export(stage)
        return self.model

    def _join(self) -> None:
        """Make the vision-language model from the language model, once."""
        if not is_joined(self.model):
            self.model = self.organism.model(self.tokenizer, self.model, self.seed)

    def _finished(self, last: Stage) -> nn.Module:
        """Take up a model whose stages are all done."""
        if last.sees:
            self._join()
        state = torch.load(self.work / f"after-{last.name}.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.export(last)
        return self.model

    def export(self, last: Stage) -> None:
        """Write the model that a stage ends as an ordinary Hugging Face folder, with its log."""
        if self.out is None:
            return
        name = self.organism.name if last.sees else self.organism.language_name
        folder = Path(self.out) / name
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing is trained beyond the end of an answer, so generation stops there.
        ends = [self.tokenizer.eos_token_id, *self.corpora[False].encode("\n\n")]
        self.model.generation_config.eos_token_id = ends
        self.model.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            weights.chmod(0o644)
        (self.processor if last.sees else self.tokenizer).save_pretrained(folder)
        self.organism.finish(folder)
        own = {s.name for s in self.stages if s.sees == last.sees}
        log = self.work / "train_log.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        kept = [line for line in lines if json.loads(line)["stage"] in own]
        (folder / "train_log.jsonl").write_text("".join(kept))
        draw_curves(folder / "train_log.jsonl", folder / "training_curves.svg")

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        language, vision = [], []
        for name, parameter in self.model.named_parameters():
            seeing = name.startswith(self.organism.seeing)
            rate = stage.vision_lr if seeing else stage.lr
            parameter.requires_grad_(rate > 0)
            if rate:
                (vision if seeing else language).append(parameter)
        groups = [(language, stage.lr), (vision, stage.vision_lr)]
        return torch.optim.AdamW(
            [{"params": p, "lr": rate, "peak": rate} for p, rate in groups if p],
            betas=(0.9, 0.98),
            weight_decay=0.02,
            fused=True,
        )

    def _train(self, number: int, stage: Stage, saved: dict | None, stop: float) -> bool:
        optimizer = self._optimizer(stage)
        start = 0
        if saved:
            start = saved["step"]
            if saved["optimizer"]:
                optimizer.load_state_dict(saved["optimizer"])
        if stage.sees and self._album is None:
            names = [e.image for d in self.world.domains for e in self.world.entities[d]]
            self._album = Album(self.world.pictures, names, self.organism, self.processor)
        self._trim_log(number, start)
        tally = Tally()
        self.model.train()
        clock = time.monotonic()
        bar = tqdm(range(start, stage.steps), initial=start, total=stage.steps, desc=stage.name)
        for step in bar:
            rng = np.random.default_rng([self.seed, number, step])
            factor = learning_rate(stage, step)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            corpus = self.corpora[stage.sees]
            losses = step_loss(stage, self.organism, self.model, corpus, self._album, rng, tally)
            for loss in losses:
                loss.backward()
                tally.add("loss", loss.item())
            grads = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(grads, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done % self.log_every == 0 or done == stage.steps:
                means = tally.means()
                spent = round(self._spent + time.monotonic() - clock, 1)
                self._log({"stage": stage.name, "step": done, **means, "seconds": spent})
                bar.set_postfix({k: v for k, v in means.items() if k.endswith("acc")})
            late = time.monotonic() > stop
            if done % self.save_every == 0 or done == stage.steps or late:
                self._spent += time.monotonic() - clock
                clock = time.monotonic()
                finished = done == stage.steps
                self._save(
                    {
                        "stage": number + finished,
                        "step": 0 if finished else done,
                        "model": self.model.state_dict(),
                        "optimizer": None if finished else optimizer.state_dict(),
                        "seconds": self._spent,
                        "seed": self.seed,
                        "organism": self.organism.name,
                    },
                    f"after-{stage.name}.pt" if finished else None,
                )
            if late:
                return done == stage.steps
        return True

    def _save(self, state: dict, keep_as: str | None) -> None:
        for name in ["checkpoint.pt", *([keep_as] if keep_as else [])]:
            temporary = self.work / f"{name}.tmp"
            torch.save(state, temporary)
            os.replace(temporary, self.work / name)

    def _load(self) -> dict | None:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(
                f"{path} was made with seed {state['seed']}, not {self.seed}: "
                "pass that seed, or another work folder"
            )
        if state["organism"] != self.organism.name:
            raise ValueError(
                f"{path} belongs to {state['organism']}, not to {self.organism.name}: pass "
                "another work folder"
            )
        self._spent = state["seconds"]
        return state

    def _log(self, line: dict) -> None:
        with (self.work / "train_log.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")

    def _trim_log(self, number: int, start: int) -> None:
        """Drop lines of steps that a resumed run does again."""
        path = self.work / "train_log.jsonl"
        if not path.exists():
            return
        order = {s.name: i for i, s in enumerate(self.stages)}
        lines = [
            line
            for line in path.read_text().splitlines(keepends=True)
            if (order[json.loads(line)["stage"]], json.loads(line)["step"]) <= (number, start)
        ]
        path.write_text("".join(lines))
