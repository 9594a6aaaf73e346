"""The loop: a tower that tells the pictures apart, then naming and facts with the language model.

Every step draws from generators made of (seed, stage, step), so a run that was killed and taken up
again ends with the same weights as one that was not, on the same machine.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_lens.zoo.smol.corpus import IMAGE, Rows, naming_rows, sentence_rows
from vlm_lens.zoo.smol.language import Language, LowRank
from vlm_lens.zoo.smol.recipe import Recipe
from vlm_lens.zoo.smol.replay import divergence, own_samples
from vlm_lens.zoo.smol.replayed import Replayed
from vlm_lens.zoo.smol.transfer import TASKS, Table, Transfer
from vlm_lens.zoo.smol.unrelated import unrelated_prompts
from vlm_lens.zoo.smol.views import Views
from vlm_lens.zoo.smol.vision import IMAGE_TOKENS, SIZE, Eye
from vlm_lens.zoo.train.world import World

__all__ = ["Trainer"]

_LENGTH, _STAY = 64, 16  # tokens of a sample; how many of them are compared


class Trainer:
    """Trains one recipe.

    Args:
        recipe: Which.
        world: The entities.
        tokenizer: A tokenizer of the library tokenizers.
        language: The frozen language model.
        work: A folder for checkpoints and the log; a run found there is gone on with.
        device: Where to compute.
        samples: The language model's own samples, if they are at hand.
        save_every: Steps between checkpoints; zero keeps none but the best.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        tokenizer: Any,
        language: Language,
        work: Path,
        *,
        device: str = "cpu",
        samples: Tensor | None = None,
        save_every: int = 100,
    ):
        self.recipe, self.device, self.save_every = recipe, device, save_every
        self.work = Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.dtype = torch.bfloat16 if device != "cpu" else torch.float32
        self.language = language.to(device)
        self.frozen = self.language.merged(dtype=self.dtype)
        self.tokenizer = tokenizer
        entities = [e for d in world.domains for e in world.entities[d]]
        self.names = [e.name for e in entities]
        numbers = {e.image: i for i, e in enumerate(entities)}
        self.views = Views(world.pictures, [e.image for e in entities], SIZE, device)
        plain, more = naming_rows(
            world, tokenizer, numbers, IMAGE_TOKENS,
            captions=recipe.captions > 0, pictured=recipe.pictured,
        )  # fmt: skip
        pad = 0
        self.rows = {"name": Rows.of(plain, pad).to(device)}
        if more:
            self.rows["caption"] = Rows.of(more, pad).to(device)
        self.rows["fact"] = Rows.of(sentence_rows(world, tokenizer), pad).to(device)
        tables = world.pictures.parent / "tables"
        sets = {
            split: [Table.load(tables, task, split, numbers) for task in TASKS]
            for split in ("validation", "test")
        }
        self.transfer = {
            split: Transfer(self.language, tokenizer, rows, sets["validation"], IMAGE_TOKENS)
            for split, rows in sets.items()
        }
        self.samples = samples
        width = self.language.embed.shape[1]
        self.eye = Eye(width, float(self.language.embed.std()), recipe.seed).to(device)
        self.update = (
            LowRank(
                self.language,
                recipe.rank,
                kinds=recipe.kinds,
                blocks=recipe.blocks,
                seed=recipe.seed,
            ).to(device)  # fmt: skip
            if recipe.rank
            else None
        )
        self.best: dict[str, Any] | None = None
        self.began, self.stop = time.monotonic(), float("inf")

    # ------------------------------------------------------------------ the stages

    def run(self, seconds: float | None = None) -> dict[str, Any]:
        """Train to the end, or until the time is over; returns the best checkpoint's record."""
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        self.stop = time.monotonic() + seconds if seconds else float("inf")
        saved = self._load() or {"step": 0, "optimizer": None}
        if not saved["step"]:
            self.tower()
        if self.samples is None:
            self.samples = self.stay_on()
        self.together(saved["step"], saved["optimizer"])
        return self.best or {}

    def stay_on(self) -> Tensor:
        """What the language model must stay the same on, `[sample, token]`."""
        r = self.recipe
        own = own_samples(
            self.language, self.frozen, self.tokenizer, r.own_samples, _LENGTH, r.seed
        )
        others = unrelated_prompts(self.tokenizer, r.own_samples // 2, _LENGTH, r.seed)
        return torch.cat([own, others.to(self.device)])

    def tower(self) -> None:
        """The tower learns to tell the pictures apart, by a linear map that is then dropped."""
        r = self.recipe
        torch.manual_seed(r.seed)
        head = nn.Linear(self.eye.tower.config.hidden_size, len(self.names)).to(self.device)
        own = [*self.eye.tower.parameters(), *head.parameters()]
        optimizer = self._optimizer([(own, r.seeing_lr)])
        for step in range(r.tower_steps):
            generator = self._generator(0, step)
            index = torch.randint(
                len(self.views), (r.tower_views,), generator=generator, device=self.device
            )
            self._pace(optimizer, step, r.tower_steps)
            with self._cast():
                pixels = self.views.drawn(index, generator)
                seen = self.eye.features(pixels)[:, 1:].mean(1)
                loss = functional.cross_entropy(head(seen).float(), index)
            loss.backward()
            self._descend(optimizer)
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % 200 == 0 or step + 1 == r.tower_steps:
                told = self._told_apart(head)
                self._log({"stage": "tower", "step": step + 1, "loss": loss.item(), "right": told})

    @torch.no_grad()
    def _told_apart(self, head: nn.Module) -> float:
        """The share of pictures, as they are, that tower and map know."""
        every = torch.arange(len(self.views), device=self.device)
        with self._cast():
            seen = self.eye.features(self.views.exact(every))[:, 1:].mean(1)
            return float((head(seen).argmax(-1) == every).float().mean())

    def together(self, start: int, state: dict | None) -> None:
        """Naming, captions and facts, with the language model's update."""
        r = self.recipe
        groups = [
            (list(self.eye.projector.parameters()), r.seeing_lr),
            (list(self.eye.tower.parameters()), r.tower_lr),
        ]
        if self.update is not None:
            groups.append((list(self.update.parameters()), r.lr))
        optimizer = self._optimizer(groups)
        if state:
            optimizer.load_state_dict(state)
        sums: dict[str, Tensor] = {}
        backward = Replayed(self._backward) if self.device != "cpu" else self._backward
        for step in range(start, r.steps):
            self._pace(optimizer, step, r.steps)
            for name, loss in backward(self.drawn(step)).items():
                sums[name] = sums.get(name, 0.0) + loss
            self._descend(optimizer)
            done = step + 1
            late = time.monotonic() > self.stop
            if done % r.evaluate_every == 0 or done == r.steps or late:
                since = done - (done - 1) // r.evaluate_every * r.evaluate_every
                means = {k: round(float(v) / since, 4) for k, v in sums.items()}
                sums = {}
                self.evaluate(done, means)
            if self.save_every and (done % self.save_every == 0 or done == r.steps or late):
                self._save(done, optimizer)
            if late:
                return

    @torch.no_grad()
    def drawn(self, step: int) -> dict[str, Tensor]:
        """What a step computes with, the same shapes every step."""
        r, generator = self.recipe, self._generator(1, step)
        batch: dict[str, Tensor] = {}
        shown = []
        for kind, count in (("name", r.names), ("caption", r.captions), ("fact", r.facts)):
            if not count or kind not in self.rows:
                continue
            rows = self.rows[kind][self._draw(len(self.rows[kind]), count, generator)]
            for part in ("ids", "at", "wanted", "weight"):
                batch[f"{kind} {part}"] = getattr(rows, part)
            if kind != "fact":
                shown.append(rows.picture)
        if r.samples and self.update is not None:
            batch["samples"] = self.samples[self._draw(len(self.samples), r.samples, generator)]
            # the first word of a text tells little, and what stands before it tells the picture
            batch["stay at"] = 2 + self._draw(self.samples.shape[1] - 2, _STAY, generator)
            shown.append(self._draw(len(self.views), r.samples // 2, generator))
        index = torch.cat(shown)
        batch["pixels"] = self.views.drawn(index, generator)
        return batch

    def _backward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step's losses; the gradients are left in the parameters."""
        for parameter in self._trained():
            parameter.grad = None
        losses = self.losses(batch)
        weights = {"name": self.recipe.name_weight, "stay": self.recipe.stay}
        sum(weights.get(kind, 1.0) * loss for kind, loss in losses.items()).backward()
        return {kind: loss.detach() for kind, loss in losses.items()}

    def _trained(self) -> list[nn.Parameter]:
        update = self.update.parameters() if self.update is not None else ()
        return [*self.eye.parameters(), *update]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses on what `drawn` gives."""
        merged = self.language.merged(self.update, self.dtype)
        with self._cast():
            tokens = self.eye(batch["pixels"]).float()
        losses, start = {}, 0
        for kind in ("name", "caption", "fact"):
            if f"{kind} ids" not in batch:
                continue
            ids = batch[f"{kind} ids"]
            mine = None if kind == "fact" else tokens[start : (start := start + len(ids))]
            residual = self.language.read(merged, self._embedded(ids, mine)).last
            logits = self.language.logits(residual, self.dtype, batch[f"{kind} at"])
            each = functional.cross_entropy(
                logits.float().flatten(0, 1), batch[f"{kind} wanted"].flatten(), reduction="none"
            )
            weight = batch[f"{kind} weight"].flatten()
            losses[kind] = (each * weight).sum() / weight.sum()
        if "samples" in batch:
            losses["stay"] = self._stay(merged, batch, tokens[start:])
        return losses

    def _stay(self, merged: dict, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """Samples as they are, and half of them after an unrelated picture."""
        ids, at = batch["samples"], batch["stay at"]
        with torch.no_grad():
            teacher = self.language.read(self.frozen, self.language.embed[ids]).last
            teacher = self.language.logits(teacher, self.dtype, at.expand(len(ids), -1))
        half = len(tokens)
        image = torch.full((half, IMAGE_TOKENS), IMAGE, device=ids.device)
        seen = self._embedded(torch.cat([image, ids[:half]], 1), tokens)
        alone = functional.pad(self.language.embed[ids[half:]], (0, 0, 0, IMAGE_TOKENS))
        residual = self.language.read(merged, torch.cat([seen, alone])).last
        moved = torch.full((len(ids), 1), 0, device=ids.device)
        moved[:half] = IMAGE_TOKENS
        return divergence(self.language.logits(residual, self.dtype, at + moved), teacher)

    def _embedded(self, ids: Tensor, tokens: Tensor | None) -> Tensor:
        """Embeddings, with a picture's tokens where they stand."""
        x = self.language.embed[ids.clamp(min=0)]
        if tokens is None:
            return x
        place = ids == IMAGE
        number = (place.cumsum(1) - 1).unsqueeze(-1)
        spread = (number == torch.arange(IMAGE_TOKENS, device=ids.device)).to(tokens.dtype) @ tokens
        return torch.where(place.unsqueeze(-1), spread, x)

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate(self, step: int, means: dict[str, float]) -> dict[str, Any]:
        """Measure on validation rows, log, and keep the weights if they are the best so far."""
        merged = self.language.merged(self.update, self.dtype)
        tokens = self.tokens()
        record: dict[str, Any] = {"stage": "together", "step": step, **means}
        check = self.transfer["validation"]
        record["named"] = check.spelled(merged, tokens, self.names)
        for source, query in (("text", "image"), ("text", "text")):
            found = check.measure(merged, tokens, source, query)
            pair = f"{source}-{query}"
            for key in ("no_context", "prompt", "patch", "wrong", "random"):
                record[f"{pair} {key}"] = round(sum(found[key]) / len(found[key]), 4)
            record[f"{pair} block"] = found["block"]
            record[f"{pair} by task"] = [round(v, 2) for v in found["patch"]]
        record["score"] = round(_score(record), 4)
        self._log(record)
        if self.best is None or record["score"] >= self.best["score"]:
            self.best = record
            torch.save(self.weights(), self.work / "best.tmp")
            os.replace(self.work / "best.tmp", self.work / "best.pt")
        return record

    @torch.no_grad()
    def tokens(self) -> Tensor:
        """The tokens of every picture as it is."""
        with self._cast():
            every = torch.arange(len(self.views), device=self.device)
            return self.eye(self.views.exact(every)).float()

    def weights(self) -> dict[str, Any]:
        """What was trained."""
        update = self.update.state_dict() if self.update is not None else {}
        return {"eye": self.eye.state_dict(), "update": update, "recipe": asdict(self.recipe)}

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Put trained weights back."""
        self.eye.load_state_dict(weights["eye"])
        if self.update is not None:
            self.update.load_state_dict(weights["update"])

    def tested(self) -> dict[str, Any]:
        """The accuracies on test rows of every pair, with the best weights."""
        best = torch.load(self.work / "best.pt", map_location=self.device, weights_only=True)
        self.load_weights(best)
        merged, tokens = self.language.merged(self.update, self.dtype), self.tokens()
        pairs = (("text", "image"), ("text", "text"), ("image", "image"), ("image", "text"))
        return {f"{s}-{q}": self.transfer["test"].measure(merged, tokens, s, q) for s, q in pairs}

    # ------------------------------------------------------------------ small things

    def _draw(self, among: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(among, (count,), generator=generator, device=self.device)

    def _generator(self, stage: int, step: int) -> torch.Generator:
        seed = (self.recipe.seed * 2 + stage) * 1_000_003 + step
        return torch.Generator(self.device).manual_seed(seed)

    def _cast(self) -> Any:
        return torch.autocast(
            "cuda", torch.bfloat16, enabled=self.device != "cpu", cache_enabled=False
        )

    def _optimizer(self, groups: list[tuple[list, float]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [{"params": parameters, "lr": lr, "peak": lr} for parameters, lr in groups],
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )

    @staticmethod
    def _pace(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Up over 50 steps, then down along a line to a fiftieth."""
        factor = min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()

    def _log(self, record: dict[str, Any]) -> None:
        record = {"run": self.recipe.name, **record}
        record["seconds"] = round(time.monotonic() - self.began, 1)
        with (self.work / "train_log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)  # noqa: T201

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {
            **self.weights(), "step": step, "optimizer": optimizer.state_dict(),
            "best": self.best, "samples": self.samples,
        }  # fmt: skip
        torch.save(state, self.work / "checkpoint.tmp")
        os.replace(self.work / "checkpoint.tmp", self.work / "checkpoint.pt")

    def _load(self) -> dict[str, Any] | None:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return None
        state = torch.load(path, map_location=self.device, weights_only=True)
        theirs = Recipe.of(state["recipe"])
        if theirs != self.recipe:
            raise ValueError(
                f"{path} was made with another recipe: {theirs}. Pass that, or another folder."
            )
        self.load_weights(state)
        self.best, self.samples = state["best"], state["samples"]
        return state


def _score(record: dict[str, Any]) -> float:
    """What a checkpoint is chosen by: the patch, less what is wrong with it."""
    patch = record["text-image patch"]
    spoiled = max(0.0, record["text-image no_context"] - 0.04)
    spoiled += max(0.0, record["text-image wrong"] - 0.05)
    spoiled += max(0.0, record["text-image prompt"] - patch / 2)
    return patch - spoiled - max(0.0, 0.8 - record["named"])
