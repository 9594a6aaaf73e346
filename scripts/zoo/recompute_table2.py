"""Recompute Table 2's three rows and one phase curve, without the library, and compare.

    python -m scripts.zoo.recompute_table2 --model toy-llava --tasks food-color --seeds 1
    python -m scripts.zoo.recompute_table2 --model smol-llava --tasks food-color --seeds 1 \
        --layer 21 --rows 10

Plain transformers and plain torch hooks read the task vectors, choose the block, patch, prompt and
decode. Then the recipes `CrossModalPatch` and `PhaseAnalysis` run, and every answer and number is
compared: answers and accuracies must be the same, the curve the same up to float32's rounding. Ends
with an error where they differ. Only the recipes use the library; it also writes smol-llava, which
ships in parts, as the ordinary folder that plain transformers loads. With `--layer` no block is
chosen, and with `--rows` fewer test rows are asked: for models that take long.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers.utils import logging

from scripts.zoo.evaluate import ROOT, TASKS, Model

SHOTS, PHASE_BATCH = 5, 16
QUERY = "Q:<image>\nA:"
ROUNDING = 2e-6  # of a probability in float32


@dataclass(frozen=True)
class Row:
    """A row of a shipped table."""

    name: str
    answers: tuple[str, ...]
    image: str


def read_table(task: str) -> tuple[list[Row], list[Row]]:
    """The validation and the test rows of a task."""
    splits: dict[str, list[Row]] = {"validation": [], "test": []}
    with (ROOT / "tasks" / "tables" / f"{task}.csv").open(encoding="utf-8", newline="") as handle:
        for r in csv.DictReader(handle):
            aliases = [a for a in r["aliases"].split("|") if a]
            splits[r["split"]].append(Row(r["input"], (r["output"], *aliases), r["image"]))
    return splits["validation"], splits["test"]


def read_rows(task: str, rows: int | None = None) -> tuple[list[Row], list[Row]]:
    """The validation rows, and so many of the test rows, evenly spread."""
    validation, test = read_table(task)
    n = len(test)
    return validation, [test[i * n // rows] for i in range(rows)] if rows and rows < n else test


def draws(count: int, seed: int) -> list[np.ndarray]:
    """The examples of each row, as the paper's code draws them."""
    np.random.seed(seed)
    return [
        np.random.permutation([i for i in range(count) if i != query])[:SHOTS]
        for query in range(count)
    ]


def shown(rows: Sequence[Row], drawn: Sequence[int]) -> str:
    """Full examples in text."""
    return "".join(f"Q:{rows[i].name}\nA:{rows[i].answers[0]}\n\n" for i in drawn)


def right(model: Model, said: str, row: Row) -> bool:
    """Whether an answer, as its tokens spell it, and the token begin one another."""
    said = said.strip()
    for answer in row.answers:
        ids = model.tokenizer.encode(answer, add_special_tokens=False)
        label = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        if said and label and (said.startswith(label) or label.startswith(said)):
            return True
    return False


def table2(
    model: Model, task: str, seeds: Sequence[int], rows: int | None = None, sweeps: bool = True
) -> tuple[dict, dict, dict]:
    """Vectors, validation accuracy by seed and layer, and answers without context and prompted."""
    validation, test = read_rows(task, rows)
    vectors, sweep = {}, {}
    for seed in seeds:
        drawn = draws(len(validation), seed)
        # what follows the last example's delimiter cannot act on it
        prompts = [
            (shown(validation, d[:-1]) + f"Q:{validation[d[-1]].name}\nA:", []) for d in drawn
        ]
        vectors[seed] = model.residuals(prompts)[:, 1:].double().mean(0).float()
        for layer in range(len(model.layers) * sweeps):
            queries = [(QUERY, [row.image]) for row in validation]
            said = model.next_tokens(queries, layer, vectors[seed][layer])
            got = [right(model, s, row) for s, row in zip(said, validation, strict=True)]
            sweep[seed, layer] = float(np.mean(got))
    queries = [(QUERY, [row.image]) for row in test]
    said = {("No Context", 0): model.next_tokens(queries)}
    for seed in seeds:
        prompts = [
            (shown(test, d) + QUERY, [row.image])
            for d, row in zip(draws(len(test), seed), test, strict=True)
        ]
        said["Prompt", seed] = model.next_tokens(prompts)
    return vectors, sweep, said


def phase_curve(model: Model, task: str, rows: int | None = None) -> np.ndarray:
    """Mean shares of input, task and answer token at each layer, `[layers, 3]`; text examples."""
    _, test = read_rows(task, rows)
    prompts = [
        (shown(test, d) + f"Q:{row.name}\nA:", [])
        for d, row in zip(draws(len(test), 1), test, strict=True)
    ]
    encode = model.tokenizer.encode
    colon = model.residuals(prompts[:1])[0, 0]
    input_id = int(model.lens(colon).argmax())
    word = encode(TASKS[task][0], add_special_tokens=False)[0]
    ids = [(input_id, word, encode(row.answers[0], add_special_tokens=False)[0]) for row in test]
    kept = [i for i, three in enumerate(ids) if len(set(three)) == 3]
    stream = model.residuals([prompts[i] for i in kept], batch=PHASE_BATCH)
    curves = []
    for i, run in zip(kept, stream, strict=True):
        three = model.lens(run)[:, list(ids[i])].double().numpy()
        curves.append(three / three.sum(1, keepdims=True))
    return np.mean(curves, axis=0)


def recompute(
    name: str,
    tasks: Sequence[str],
    seeds: int,
    *,
    rows: int | None = None,
    layer: int | None = None,
) -> list[str]:
    """Compare both ways of computing; the differences found.

    Args:
        name: A shipped model.
        tasks: The tasks; one block is chosen for all.
        seeds: Seeds 1 to this many.
        rows: How many test rows of each task; all if None.
        layer: The block that is patched; chosen on the validation rows if None.
    """
    from vlm_lens import HookedVLM
    from vlm_lens.model.assembled import base_name, save_folder
    from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis
    from vlm_lens.tasks import Task

    vlm = HookedVLM.from_pretrained(name)
    folder, numbers = ROOT / "zoo" / "models" / name, range(1, seeds + 1)
    with TemporaryDirectory() as whole:
        model = Model(save_folder(vlm, whole) if base_name(folder) else folder)
    model.tokenizer.padding_side = "left"
    plain = {task: table2(model, task, numbers, rows, layer is None) for task in tasks}
    given = layer
    if layer is None:
        by_layer = [
            np.mean([[plain[t][1][s, layer] for s in numbers] for t in tasks])
            for layer in range(len(model.layers))
        ]
        layer = int(np.argmax(np.round(by_layer, 12)))

    asked = tuple(Task.load(task).fewer(rows) if rows else Task.load(task) for task in tasks)
    recipe = CrossModalPatch(asked, seeds=seeds, controls=False, layer=given)
    result = recipe.run(vlm, progress=False)
    wrong = [] if result.layer == layer else [f"block {layer}, the recipe has {result.layer}"]
    for task in tasks:
        vectors, sweep, said = plain[task]
        _, test = read_rows(task, rows)
        queries = [(QUERY, [row.image]) for row in test]
        for seed in numbers:
            said["Patch", seed] = model.next_tokens(queries, layer, vectors[seed][layer])
        for one in result.layers.query("task == @task").to_dict("records"):
            if abs(sweep[one["seed"], one["layer"]] - one["accuracy"]) > 1e-12:
                wrong.append(f"{task}, validation, seed {one['seed']}, block {one['layer']}")
        mine = result.predictions.query("task == @task")
        for (method, seed), answers in said.items():
            theirs = mine.query("method == @method and seed == @seed")
            if [a.strip() for a in answers] != [p.strip() for p in theirs["prediction"]]:
                wrong.append(f"{task}, {method}, seed {seed}: other answers")
        for method in ("No Context", "Prompt", "Patch"):
            runs = [answers for (m, _), answers in said.items() if m == method]
            got = np.mean(
                [[right(model, a, r) for a, r in zip(run, test, strict=True)] for run in runs]
            )
            theirs = result.accuracy(method, task)
            print(f"{task}, {method}: {got:.6f}, recipe {theirs:.6f}")
            if abs(got - theirs) > 1e-12:
                wrong.append(f"{task}, {method}: {got} and {theirs}")
    curve = phase_curve(model, tasks[0], rows)
    runs = min(100, len(asked[0].test))
    phases = PhaseAnalysis(asked[0], forms=False, runs=runs)  # the paper's rule
    phases = phases.run(vlm, progress=False)
    off = float(np.abs(curve - phases.table[["input", "task", "answer"]].to_numpy()).max())
    order = "".join("ITA"[k] for k in curve.argmax(1))
    print(f"{tasks[0]}, phases: {order}, recipe {phases.phases}; largest difference {off:.1e}")
    if off > ROUNDING or order != phases.phases:
        wrong.append(f"{tasks[0]}, phase curve: {off} apart, {order} and {phases.phases}")
    return wrong


def main() -> int:
    """Compare, and say where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy-llava", help="a shipped model")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="test rows of a task; all by default")
    parser.add_argument("--layer", type=int, help="the block; chosen on validation by default")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    wrong = recompute(
        options.model, options.tasks, options.seeds, rows=options.rows, layer=options.layer
    )
    for line in wrong:
        print(f"differs: {line}", file=sys.stderr)
    print("differences found" if wrong else "equal")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
