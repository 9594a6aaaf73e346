"""Measures which lens reads what is in pictures, and writes docs/_generated/lens_reading.md.

    python -m scripts.docs.lens_reading FOLDER

fits a tuned lens and a Jacobian lens on each trained organism (about five minutes a model on one
core; they stay in FOLDER, and a run that was stopped goes on), builds banks of contextual
embeddings from the tasks' text prompts, and scores every lens on test rows that no fit has seen.
`--only MODEL` measures one of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.docs.paper_numbers import table
from vlm_lens import Find, HookedVLM
from vlm_lens.lenses import (
    Bank,
    EmbeddingLens,
    JacobianLens,
    LatentLens,
    Lens,
    LogitLens,
    Patchscope,
    ReadingScore,
    TunedLens,
    in_contexts,
    score_reading,
)
from vlm_lens.tasks import Task, contents
from vlm_lens.tasks.grids import SHAPES
from vlm_lens.tasks.palette import COLORS

OUT = Path(__file__).resolve().parents[2] / "docs" / "_generated" / "lens_reading.md"
ORGANISMS = ("toy-llava", "toy-idefics2", "toy-fuyu")
DOMAINS = ("country-capital", "animal-latin", "food-color")
TASKS = (
    "country-capital", "country-currency", "animal-latin", "animal-young", "food-color",
    "food-flavor",
)  # fmt: skip
GRIDS = ("grid-color", "grid-shape")
SOME = tuple(f"blocks.{i}.hook_resid_post" for i in (0, 5, 10, 15, 20, 25, 29))
SENTENCES = ("My neighbour told me about the {}", "She drew a picture of one {}")
LENSES = ("logit", "tuned", "Jacobian", "embedding", "LatentLens", "Patchscope")


def _texts(tasks: Sequence[Task]) -> list[str]:
    return [task.query(row, "text").text + row.output for task in tasks for row in task]


def tuned(vlm: HookedVLM, tasks: Sequence[Task], folder: Path) -> TunedLens:
    """The tuned lens of an organism, by kind of position."""
    stem = folder / f"{vlm.name}-tuned"
    if stem.with_name(f"{stem.name}.json").exists():
        return TunedLens.load(stem)
    prompts = []
    for task in tasks:
        for seed in range(6):
            prompts += [task.examples(3, modality=m, seed=seed) for m in ("text", "image")]
        for modality in ("image", "text"):
            prompts += [task.query(row, modality) for row in task.validation[:20]]
    lens = TunedLens.fit(
        vlm, prompts, kinds="each", steps=300, lr=3e-3, save=folder / f"{vlm.name}-tuned-fit"
    )
    lens.save(stem)
    return lens


def jacobian(vlm: HookedVLM, tasks: Sequence[Task], folder: Path) -> JacobianLens:
    """The Jacobian lens of an organism, pictures and text apart."""
    stem = folder / f"{vlm.name}-jacobian"
    if stem.with_name(f"{stem.name}.json").exists():
        return JacobianLens.load(stem)
    prompts = [t.query(row, "image") for t in tasks[::2] for row in t.validation[:15]]
    prompts += _texts(tasks)[:200:10]
    lens = JacobianLens.fit(vlm, prompts, kinds="each", save=folder / f"{vlm.name}-jacobian-fit")
    lens.save(stem)
    return lens


def organism(name: str, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of a trained organism, and the KL of its tuned lens."""
    vlm = HookedVLM.from_pretrained(name)
    grid = name == "toy-induction"
    tasks = [Task.load(task) for task in (GRIDS if grid else TASKS)]
    asked = tasks if grid else tasks[::2]
    fitted = tuned(vlm, tasks, folder)
    bank = Bank.build(vlm, _texts(tasks), folder / f"{name}-bank")
    known = (
        {task.name: contents(task.test[:40]) for task in asked}
        if grid
        else {"pictures": [one for task in asked for one in contents(task.test[:20])]}
    )
    lenses: dict[str, Lens] = {
        "logit": LogitLens(),
        "tuned": fitted,
        "Jacobian": jacobian(vlm, tasks, folder),
        "embedding": EmbeddingLens(),
        "LatentLens": LatentLens(bank=bank),
    }
    found = [
        row for of, ones in known.items() for row in _rows(score_reading(vlm, ones, lenses), of)
    ]
    if not grid:  # a bare query is answered by the entity's name
        scope = Patchscope(target="Q:Greece\nA:", placeholder="Greece", layer=0, max_new_tokens=2)
        few = known["pictures"][::3]
        found += _rows(score_reading(vlm, few, {"Patchscope": scope}), "pictures")
    return found, [{"model": name, **row} for row in fitted.about["report"]]


def smol_llava(folder: Path) -> list[dict[str, Any]]:
    """Scores of smol-llava on the tasks' pictures and on drawn grids; lenses that need no fit."""
    vlm = HookedVLM.from_pretrained("smol-llava")
    tasks = [Task.load(task) for task in DOMAINS]
    words = [*(row.input for task in tasks for row in task), *COLORS, *SHAPES]
    bank = Bank.build(vlm, in_contexts(words), folder / "smol-llava-bank")
    lenses: dict[str, Lens] = {
        "logit": LogitLens(SOME),
        "embedding": EmbeddingLens(SOME),
        "LatentLens": LatentLens(SOME, bank=bank),
    }
    pictures = [one for task in tasks for one in contents(task.test[:8])]
    known = {"pictures": pictures}
    known |= {task: contents(Task.load(task).test[:8]) for task in GRIDS}
    return [
        row for of, ones in known.items() for row in _rows(score_reading(vlm, ones, lenses), of)
    ]


def text(folder: Path) -> list[dict[str, Any]]:
    """Scores of SmolLM2 on words of one token, in sentences that its bank does not have."""
    vlm = HookedVLM.from_pretrained("smollm2-135m")
    tasks = [Task.load(task) for task in DOMAINS]
    named = sorted({row.input for task in tasks for row in task})
    words = [word for word in named if len(vlm.to_tokens(f" {word}")) == 1]
    bank = Bank.build(vlm, in_contexts(words), folder / "smollm2-bank")
    lenses: dict[str, Lens] = {
        "logit": LogitLens(SOME),
        "embedding": EmbeddingLens(SOME),
        "LatentLens": LatentLens(SOME, bank=bank),
    }
    known = [(s.format(word), Find(word), (word,)) for word in words[::4] for s in SENTENCES]
    return _rows(score_reading(vlm, known, lenses), "words in text")


def _rows(scored: ReadingScore, what: str) -> list[dict[str, Any]]:
    return [{"model": scored.model, "of": what, **row} for row in scored.table.to_dict("records")]


def page(rows: Sequence[dict[str, Any]], kl: Sequence[dict[str, Any]]) -> str:
    """The generated part of the page."""
    best: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        here = best.setdefault((row["model"], row["of"]), {})
        if row["lens"] not in here or row["share"] > here[row["lens"]]["share"]:
            here[row["lens"]] = row
    lines = []
    for (model, of), here in best.items():
        leads = max(row["share"] for row in here.values())
        line = [f"{model}, {of}"]
        for lens in LENSES:
            if lens not in here:
                line.append("-")
                continue
            row = here[lens]
            cell = f"{row['share']:.2f} ({row['shuffled']:.2f}) at {row['layer']}"
            # more than the control, on more than a handful of patches
            clear = row["share"] > max(0.03, 2 * row["shuffled"]) and row["positions"] >= 30
            line.append(f"**{cell}**" if row["share"] == leads and clear else cell)
        lines.append(line)
    parts = [
        "<!-- Written by scripts/docs/lens_reading.py from what it measured: do not edit. -->\n",
        table(["", *LENSES], lines),
        "",
    ]
    if not kl:  # models whose lenses need no fit
        return "\n".join(parts)
    parts += [
        "The tuned lens, KL to the model's output in nats on held-out prompts, beside the logit "
        "lens's:\n",
        table(["", *_layers(kl)], _kl_lines(kl)),
        "",
    ]
    return "\n".join(parts)


def _layers(kl: Sequence[dict[str, Any]]) -> list[str]:
    return [f"after block {i}" for i in range(1 + max(_layer(row) for row in kl))]


def _layer(row: dict[str, Any]) -> int:
    return int(row["point"].split(".")[1])


def _kl_lines(kl: Sequence[dict[str, Any]]) -> list[list[str]]:
    cells: dict[str, dict[int, str]] = {}
    for row in kl:
        name = f"{row['model']}, {row['kind']}"
        shown = f"{row['kl']:.2f} / {row['kl, logit lens']:.2f}"
        cells.setdefault(name, {})[_layer(row)] = shown
    most = len(_layers(kl))
    return [[name, *(mine.get(i, "-") for i in range(most))] for name, mine in cells.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is not measured yet and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="one model")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    names = (*ORGANISMS, "toy-induction", "smol-llava", "smollm2-135m")
    rows, kl = [], []
    for name in names:
        path = options.folder / f"{name}.json"
        if not path.exists() and options.only in (None, name):
            if name == "smol-llava":
                found: tuple[list, list] = smol_llava(options.folder), []
            elif name == "smollm2-135m":
                found = text(options.folder), []
            else:
                found = organism(name, options.folder)
            path.write_text(json.dumps(found, indent=1))
        if path.exists():
            scored, measured = json.loads(path.read_text())
            rows += scored
            kl += measured
    OUT.write_text(page(rows, kl), encoding="utf-8")


if __name__ == "__main__":
    main()
