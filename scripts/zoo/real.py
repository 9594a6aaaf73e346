"""Measure the real small models, SmolLM2 and smol-llava, by the library's recipes.

    python -m scripts.zoo.real --out real_tables [--only text-image known ...]

Each entry of `JOBS` is saved in a folder of its own; what is there already is not run again, and
what prompts say and vectors are is shared between entries. A whole table of the paper takes hours
on one core with a model of 135 M parameters, so `ROWS` test rows of each task are asked, spread
evenly over the table; the vectors are read from all 30 validation prompts, as in the paper. In
bfloat16, which is twice as fast as float32 on a CPU that has it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_lens import HookedVLM
from vlm_lens.layout.positions import Last
from vlm_lens.reading.many import read_each
from vlm_lens.recipes import (
    CrossModalPatch,
    InstructionEnsemble,
    InterModelTransfer,
    PhaseAnalysis,
    Result,
    TaskSpace,
)
from vlm_lens.recipes.parts.known import by_knowledge
from vlm_lens.recipes.parts.vector_sources import TaskVectors
from vlm_lens.recipes.parts.word_forms import answer_forms
from vlm_lens.tasks import PAPER_TASKS, Task
from vlm_lens.terms import PROMPT

ROWS, MAIN_ROWS, PICTURE_ROWS = 16, 30, 10
EASY = ("country-continent", "country-language", "word-plural", "word-opposite", "word-past",
        "word-capitals")  # fmt: skip
WORDS = {
    "country-capital": ("capital", "city"),
    "country-currency": ("currency", "money", "dollar"),
    "animal-latin": ("species", "genus", "order"),
    "animal-young": ("baby", "young"),
    "food-color": ("color",),
    "food-flavor": ("flavor", "taste"),
}
CONTROLS = ("wrong-same", "random")
VLM, LLM = "smol-llava", "smollm2-135m"


def cut(name: str, rows: int) -> Task:
    """A task with fewer test rows."""
    return Task.load(name).fewer(rows)


def six(rows: int) -> tuple[Task, ...]:
    """The paper's tasks."""
    return tuple(cut(name, rows) for name in PAPER_TASKS)


@dataclass(frozen=True)
class Job:
    """One table: on which model, and what runs, given the folder of all."""

    model: str
    recipe: Callable[[Path], Any]


def transfer(rows: int, source: str, query: str, **fields: Any) -> Callable[[Path], Any]:
    """`CrossModalPatch` on the six tasks, three seeds of examples."""
    options = {"seeds": 3, "controls": CONTROLS, **fields}
    return lambda out: CrossModalPatch(six(rows), source=source, query=query, **options)


def block(out: Path) -> int:
    """The block that the validation rows chose for text -> image."""
    return Result.load(out / "text-image").layer


JOBS = {
    "text-image": Job(
        VLM,
        transfer(
            MAIN_ROWS, "text", "image",
            controls=("wrong-same", "wrong-other", "random", "single", "added"),
        ),
    ),
    "smollm2": Job(LLM, transfer(ROWS, "text", "text")),
    "easy": Job(
        LLM,
        lambda out: CrossModalPatch(
            tuple(cut(name, ROWS) for name in EASY), source="text", query="text", seeds=3,
            controls=("wrong-other", "random"),
        ),
    ),
    "text-text": Job(VLM, transfer(ROWS, "text", "text")),
    "base": Job(
        VLM,
        lambda out: InterModelTransfer(
            six(MAIN_ROWS), seeds=3, layer=block(out), controls=False, source_model=LLM
        ),
    ),
    "instruction": Job(VLM, transfer(ROWS, "instruction", "image")),
    "ensemble": Job(
        VLM,
        lambda out: InstructionEnsemble(
            six(ROWS), counts=(5, 10, 20, 30), meanings=("averaged",), layer=block(out)
        ),
    ),
    "image-image": Job(VLM, transfer(PICTURE_ROWS, "image", "image")),
    "image-text": Job(VLM, transfer(PICTURE_ROWS, "image", "text")),
    "space": Job(VLM, lambda out: TaskSpace(six(ROWS), points=10)),
    "whole-smollm2": Job(
        LLM,
        transfer(PICTURE_ROWS, "text", "text", seeds=1, controls=False, layer=22,
                 whole_answers=True),
    ),
    "whole-text-image": Job(
        VLM,
        lambda out: CrossModalPatch(
            six(PICTURE_ROWS), seeds=1, controls=False, layer=block(out), whole_answers=True
        ),
    ),
}  # fmt: skip
for _name, _words in WORDS.items():
    for _modality, _model in (("text", LLM), ("text", VLM), ("image", VLM)):
        JOBS[f"phases-{_model}-{_name}-{_modality}"] = Job(
            _model,
            lambda out, name=_name, words=_words, modality=_modality: PhaseAnalysis(
                name, modality=modality, runs=12, task_token=words
            ),
        )  # fmt: skip


# ---------------------------------------------------------------------- not recipes


def known(vlm: HookedVLM, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The test rows that a model answers in zero-shot, after the instruction."""
    found = {}
    for name in names:
        yes, _ = by_knowledge(vlm, cut(name, ROWS))
        found[name] = [] if yes is None else [row.input for row in yes.test]
    return found


@torch.no_grad()
def names_in_pictures(vlm: HookedVLM, rows: int = ROWS) -> dict[str, Any]:
    """The logit lens at a picture's positions: how often a form of its name is among the top ten.

    The best position of each picture counts. `other` asks the same pictures for the name of the
    next entity of the domain: what chance and the domain give.
    """
    points = [f"blocks.{i}.hook_resid_post" for i in range(vlm.cfg.n_layers)]
    found: dict[str, Any] = {}
    for name in PAPER_TASKS[::2]:
        test = cut(name, rows).test
        ranks: dict[str, list[list[int]]] = {"own": [], "other": []}
        for row, other in zip(test, (*test[1:], test[0]), strict=True):
            prompt = vlm.prompt("Q:<image>\nA:", [row.image])
            _, read = vlm.run_with_cache(prompt, names_filter=points, last_logits=1)
            at = list(prompt.layout.image[0].positions)
            forms = {"own": answer_forms(vlm, row.input), "other": answer_forms(vlm, other.input)}
            best: dict[str, list[int]] = {"own": [], "other": []}
            for point in points:
                logits = vlm.unembed(vlm.ln_final(read[point][0, at])).float()
                for key, ids in forms.items():
                    mine = logits[:, list(ids)].amax(-1, keepdim=True)
                    best[key].append(int((logits > mine).sum(-1).min()))
            for key in ranks:
                ranks[key].append(best[key])
        found[name.partition("-")[0]] = {
            key: {f"top{k}": (np.array(r) < k).mean(0).tolist() for k in (1, 10)}
            for key, r in ranks.items()
        }
    return found


OTHERS: dict[str, tuple[str, Callable[[HookedVLM], Any]]] = {
    "known": (LLM, lambda vlm: known(vlm, (*PAPER_TASKS, *EASY))),
    "names-in-pictures": (VLM, names_in_pictures),
}


# ---------------------------------------------------------------------- running


def share(out: Path) -> None:
    """Reads vectors once for all recipes, and asks few-shot prompts once."""
    ask = CrossModalPatch._said

    def each(self: TaskVectors, task: Task, seed: int) -> torch.Tensor:
        prompts = self.prompts(task, seed)
        name = f"{self.vlm.name}-{self.source}-{task.name}-{seed}-{_digest(prompts)}"
        read = read_each(
            self.vlm, prompts, at=Last(), batch_size=self.batch_size, save=out / "vectors" / name
        )
        return read.load()

    def once(self: Any, vlm: Any, prompts: Any, methods: Any, answers: Any, what: str) -> Any:
        if [method for method, _ in methods] != [PROMPT] or self.whole_answers:
            return ask(self, vlm, prompts, methods, answers, what)
        name = f"{vlm.name}-{self.source}-{self.query}-{what}-{_digest(prompts)}.json"
        file = out / "prompts" / name.replace(" ", "-")
        if not file.exists():
            tokens, _ = ask(self, vlm, prompts, methods, answers, what)[next(iter(methods))]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(tokens.tolist()))
        return {next(iter(methods)): (torch.tensor(json.loads(file.read_text())), None)}

    TaskVectors.each, CrossModalPatch._said = each, once  # type: ignore[method-assign]


def _digest(prompts: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(p.text for p in prompts).encode()).hexdigest()[:8]


def main() -> None:
    """Run what is asked and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("real_tables"))
    parser.add_argument("--only", nargs="+", choices=[*JOBS, *OTHERS], default=[*JOBS, *OTHERS])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    share(options.out)
    model = cache(lambda name: HookedVLM.from_pretrained(name, dtype="bfloat16"))
    for name in options.only:
        start, folder = time.process_time(), options.out / name
        if name in OTHERS:
            file = folder.with_suffix(".json")
            if not file.exists():
                at, measure = OTHERS[name]
                file.write_text(json.dumps(measure(model(at)), indent=1) + "\n")
        elif not (folder / "provenance.json").exists():
            job = JOBS[name]
            result = job.recipe(options.out).run(model(job.model), progress=False)
            result.save(folder)
            print(result, flush=True)
        print(f"{name}: {time.process_time() - start:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
