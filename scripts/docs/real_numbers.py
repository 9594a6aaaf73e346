"""Write the numbers of docs/real_model.md from what `scripts.zoo.real` measured.

    python -m scripts.zoo.real --out real_tables
    python -m scripts.docs.real_numbers real_tables

writes docs/_generated/real_numbers.md, the same into the card of smol-llava, and
docs/_generated/side_by_side.md: Table 2 of the paper, of smol-llava and of the organisms (as
`scripts.docs.paper_numbers` wrote theirs). What was not measured is left out. Nothing is typed by
hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm_lens import zoo
from vlm_lens.recipes import Result
from vlm_lens.recipes.parts.scoring import bootstrap, prefix_match
from vlm_lens.reproduce import paper
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN, NO_CONTEXT, PATCH, PATCH_BASE, PROMPT, RANDOM, WRONG_SAME

OUT = Path(__file__).resolve().parents[2] / "docs" / "_generated"
BEGIN, END = "<!-- three seeds: begin -->", "<!-- three seeds: end -->"  # in the card
PUBLISHED = ("LLaVA-v1.5", "Mantis-Fuyu", "Idefics2")
TABLE2 = {  # a row of Table 2 -> the entry of `scripts.zoo.real` and its method
    NO_CONTEXT: ("text-image", NO_CONTEXT),
    "Text Examples Prompt": ("text-image", PROMPT),
    "Text Examples Patch": ("text-image", PATCH),
    "Image Examples Prompt": ("image-image", PROMPT),
    "Image Examples Patch": ("image-image", PATCH),
    "LLM-VLM": ("base", PATCH_BASE),
}
PAIRS = {
    "text-image": "text -> image",
    "text-text": "text -> text",
    "image-image": "image -> image",
    "image-text": "image -> text",
    "instruction": "instruction -> image",
}
COLUMNS = ["method", NO_CONTEXT, PROMPT, PATCH, WRONG_SAME, RANDOM]


def results(folder: Path) -> dict[str, Any]:
    """What was measured by recipes, phases apart."""
    names = [p.name for p in folder.glob("*/") if (p / "provenance.json").exists()]
    return {name: Result.load(folder / name) for name in names if "phases" not in name}


def markdown(table: pd.DataFrame) -> str:
    """A table, numbers with two digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "-" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1)
        return str(value).replace("|", "\\|")

    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(cell, one)) + " |" for one in lines)


def wide(result: Any) -> pd.DataFrame:
    """Methods by tasks, with the mean's intervals and the balanced accuracy."""
    return result.summary().drop(columns=["strict"])


def by_seed(result: Any, method: str) -> list[float]:
    """The mean over tasks of each seed."""
    mine = result.predictions[result.predictions["method"] == method]
    return mine.groupby(["seed", "task"])["correct"].mean().groupby("seed").mean().tolist()


def queries(result: Any) -> str:
    """How many rows were asked."""
    table = result.table
    return f"{int(table[table['task'] == MEAN]['queries'].iloc[0])} queries of test rows"


def headline(result: Any) -> Iterator[str]:
    """Text -> image: the table, and how many times the prompt the patch does."""
    yield (
        f"`CrossModalPatch(source='text', query='image', seeds=3)`, {queries(result)}, block "
        f"{result.layer} chosen on the validation rows:"
    )
    yield markdown(wide(result))
    patch, prompt = by_seed(result, PATCH), by_seed(result, PROMPT)
    each = ", ".join(f"{a:.2f} and {b:.2f}" for a, b in zip(patch, prompt, strict=True))
    yield (
        f"Patch less Prompt: {result.difference(PATCH, PROMPT)}, paired bootstrap over queries. "
        f"Patch and Prompt by seed of the examples: {each}; Patch is "
        f"{np.mean(patch) / np.mean(prompt):.2f} times Prompt."
    )


def lookup(result: Any) -> pd.DataFrame:
    """What the patch says of each picture, judged by its own answers and by other pictures'."""
    rows = []
    for name, mine in result.predictions.query("method == @PATCH").groupby("task", sort=False):
        answers = {row.input: row.answers for row in Task.load(name)}
        own, other, shares = [], [], []
        for _, said in mine.groupby("seed"):
            texts, inputs = list(said["prediction"]), list(said["input"])
            right = np.array([[prefix_match(t, answers[i]) for i in inputs] for t in texts])
            same = np.eye(len(texts), dtype=bool)
            own.append(right[same].astype(float))
            other.append(np.where(same, 0, right).sum(1) / (len(texts) - 1))
            shares.append(pd.Series(texts).value_counts(normalize=True).iloc[0])
        gained = np.mean(own, axis=0) - np.mean(other, axis=0)
        low, high = bootstrap([gained])
        rows.append(
            {
                "task": name, "own picture": float(np.mean(own)),
                "another picture": float(np.mean(other)),
                "difference": f"{gained.mean():+.2f} ({low:+.2f} to {high:+.2f})",
                "commonest answer's share": float(np.mean(shares)),
                "distinct answers": float(mine.groupby("seed")["prediction"].nunique().mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def told_apart(result: Any, known: dict[str, list[str]]) -> pd.DataFrame:
    """Prompt and Patch on rows that the model knows in zero-shot, and on the others."""
    rows = []
    for name, mine in result.predictions.groupby("task", sort=False):
        easy = mine["input"].isin(known[name])
        cells: dict[str, Any] = {"task": name, "known": f"{len(known[name])} of "
                                 f"{mine['input'].nunique()}"}  # fmt: skip
        for method in (PROMPT, PATCH):
            chosen = mine["method"] == method
            for which, rowsof in (("known", easy), ("unknown", ~easy)):
                right = mine[chosen & rowsof]["correct"]
                cells[f"{method}, {which}"] = float(right.mean()) if len(right) else float("nan")
        rows.append(cells)
    return pd.DataFrame(rows)


def pairs(found: dict[str, Any]) -> pd.DataFrame:
    """The means of every pair of modalities."""
    rows = []
    for name, title in PAIRS.items():
        if name in found:
            table = found[name].table.set_index(["method", "task"])
            cells: dict[str, Any] = {"pair": title, "block": found[name].layer}
            for method in (NO_CONTEXT, PROMPT, PATCH, WRONG_SAME, RANDOM):
                cells[method] = float(table["accuracy"].get((method, MEAN), np.nan))
            low, high = (table[c][PATCH, MEAN] for c in ("low", "high"))
            cells |= {"Patch, 95 % queries": f"{low:.2f}-{high:.2f}"}
            cells |= {"balanced": float(table["balanced"][PATCH, MEAN])}
            cells |= {"queries": int(table["queries"][PATCH, MEAN])}
            rows.append(cells)
    return pd.DataFrame(rows)


def sweeps(found: dict[str, Any]) -> pd.DataFrame:
    """Patch after each block on the validation rows, mean over tasks and seeds."""
    curves = {
        title: found[name].layers.groupby("layer")["accuracy"].mean()
        for name, title in PAIRS.items()
        if name in found and not found[name].layers.empty
    }
    if "smollm2" in found:
        curves["SmolLM2, text -> text"] = (
            found["smollm2"].layers.groupby("layer")["accuracy"].mean()
        )
    table = pd.DataFrame(curves).T
    n = table.shape[1]
    shown = [block for block in range(n) if block % 5 == 0 or block >= 0.6 * n]
    return table[shown].reset_index(names="block")


def phases(folder: Path) -> pd.DataFrame:
    """Which phase leads at each block, and the task's largest share."""
    rows = []
    for one in sorted(folder.glob("phases-*/")):
        result = Result.load(one)
        best = result.table["task"].astype(float).idxmax()
        tokens = [repr(t.strip()) for t in result.values["task_tokens"]]
        rows.append(
            {
                "model": "smol-llava" if "smol-llava" in one.name else "smollm2-135m",
                "task": result.values["task"], "examples": result.values["modality"],
                "embed, blocks 0 to 29": f"`{result.phases}`",
                "task's largest share": float(result.table["task"].max()),
                "at": str(result.table["layer"][best]),
                "tokens": ", ".join(dict.fromkeys(tokens)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def organisms(written: Path) -> dict[str, dict[str, str]]:
    """Table 2 of the organisms, from the page that `scripts.docs.paper_numbers` wrote."""
    lines = written.read_text(encoding="utf-8").partition("\nTable 2, mean")[2].splitlines()
    rows = [[c.strip() for c in one.strip("|").split("|")] for one in lines if one.startswith("|")]
    names = rows[0][1:]
    return {
        row: dict(zip(names, (_here(c) for c in cells), strict=True)) for row, *cells in rows[2:]
    }


def _here(cell: str) -> str:
    here = cell.partition(" /")[0]
    return here[1:] if here.startswith("0.") else here


def side_by_side(found: dict[str, Any], written: Path) -> str:
    """Table 2 of the paper's models, the real small model and the organisms."""
    planted, rows = organisms(written), []
    for row, (entry, method) in TABLE2.items():
        table = "table3" if row == "LLM-VLM" else "table2"
        published = [paper.lookup(table, model, row) for model in PUBLISHED]
        cells: dict[str, Any] = {"": row}
        cells |= {m: "-" if v is None else v for m, v in zip(PUBLISHED, published, strict=True)}
        cells["smol-llava"] = found[entry].accuracy(method) if entry in found else "-"
        cells |= {name: value or "-" for name, value in planted.get(row, {}).items()}
        rows.append(cells)
    rows[-1][""] = "Text Examples Patch, vectors of the base LLM"
    return markdown(pd.DataFrame(rows).fillna("-"))


def page(folder: Path) -> str:
    """The generated part of the page.

    Args:
        folder: What `scripts.zoo.real --out` wrote.
    """
    found = results(folder)
    others = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}
    known = others.get("known", {})
    parts = [
        "<!-- Written by scripts/docs/real_numbers.py from a run: do not edit. -->",
        "By `python -m scripts.zoo.real`: the library's recipes, bfloat16 on a CPU, seeds 1, 2 and "
        "3 of examples, vectors from all 30 validation prompts of a task, blocks chosen on the "
        "validation rows, test rows evenly spread over the table.",
    ]
    if "text-image" in found:
        parts += ["### smol-llava, text -> image", *headline(found["text-image"])]
        parts += [
            "Is the entity looked up? What the patched model says of each picture, judged by that "
            "picture's answers, and by those of every other picture of the task (what the same "
            "answers would get if they had nothing to do with the picture):",
            markdown(lookup(found["text-image"])),
        ]
    if sum(name in found for name in PAIRS) > 1:
        parts += ["### smol-llava, every pair", markdown(pairs(found))]
    if "base" in found:
        result = found["base"]
        cosine = result.cosine()
        parts += [
            "### Vectors of SmolLM2 itself in smol-llava",
            f"Block {result.layer}, {queries(result)}; cosine of vectors of the same task "
            f"{cosine['matched']:.2f}, of different tasks {cosine['mismatched']:.2f}:",
            markdown(wide(result)),
        ]
    if "ensemble" in found:
        summary = found["ensemble"].summary()
        parts += [
            "### Instructions, examples and both",
            f"Mean over the six tasks, case ignored, block {found['ensemble'].values['layer']}, "
            "± standard deviation over seeds:",
            markdown(summary),
        ]
    for name, title in (
        ("smollm2", "### SmolLM2, text -> text, the six tasks"),
        ("easy", "### SmolLM2, text -> text, easy tasks"),
    ):
        if name in found:
            result = found[name]
            parts += [title, f"{queries(result)}, block {result.layer}:", markdown(wide(result))]
            if known:
                parts += [
                    "Rows that the model answers after the instruction without an example (known), "
                    "and the others:",
                    markdown(told_apart(result, known)),
                ]
    for name, title in (
        ("whole-smollm2", "SmolLM2, text -> text"),
        ("whole-text-image", "smol-llava, text -> image"),
    ):
        if name in found:
            chosen = found[name].summary()[["method", "mean", "strict", "whole", "answer_prob"]]
            parts += [
                f"### Whole answers: {title}",
                f"One seed, {queries(found[name])}; mean over the six tasks by the prefix rule, by "
                "the first token, by the whole answer, and the answer's probability:",
                markdown(chosen[chosen["method"].isin([NO_CONTEXT, PROMPT, PATCH])]),
            ]
    if found:
        parts += [
            "### Which block",
            "Patch on the validation rows, mean over tasks and seeds:",
            markdown(sweeps(found)),
        ]
    if len(drawn := phases(folder)):
        parts += ["### Phases", "12 runs each (I input, T task, A answer):", markdown(drawn)]
    if "names-in-pictures" in others:
        rows = []
        for domain, ranks in others["names-in-pictures"].items():
            own = np.array(ranks["own"]["top10"])
            best = int(own.argmax())
            other = ranks["other"]["top10"][best]
            rows.append((domain, best, float(own[best]), float(other)))
        head = ["domain", "best block", "its own name", "another's name"]
        parts += [
            "### Names at the picture's positions",
            "Share of pictures at one of whose 16 positions the logit lens has the name's first "
            "token among its ten most likely:",
            markdown(pd.DataFrame(rows, columns=head)),
        ]
    if "space" in found:
        parts += ["### Task space", markdown(found["space"].table)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what scripts.zoo.real --out wrote")
    options = parser.parse_args()
    numbers = page(options.folder)
    (OUT / "real_numbers.md").write_text(numbers, encoding="utf-8")
    card = zoo.path("smol-llava") / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    inside = numbers.partition("\n\n")[2].replace("\n### ", "\n#### ")
    card.write_text(f"{before}{BEGIN}\n\n{inside}\n{END}{rest.partition(END)[2]}", "utf-8")
    beside = side_by_side(results(options.folder), OUT / "paper_numbers.md")
    mark = "<!-- Written by scripts/docs/real_numbers.py from a run: do not edit. -->"
    (OUT / "side_by_side.md").write_text(f"{mark}\n\n{beside}\n", encoding="utf-8")
    print(f"wrote {OUT}/real_numbers.md and side_by_side.md")


if __name__ == "__main__":
    main()
