"""Write what was measured into the cards of the shipped models.

    python -m scripts.zoo.cards toy-llava --evaluation docs/zoo/measured/toy-llava.json

replaces what stands between the two `measured` marks of `vlm_lens/zoo/models/NAME/README.md`, and
of its base language model's: first the numbers of the library's recipes, then those of
`scripts/zoo/evaluate.py`, which shares no code with the library.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from scripts.zoo import evaluate
from vlm_lens import HookedVLM, zoo
from vlm_lens.model.checkpoints import base_of, unrelated_of
from vlm_lens.recipes import CrossModalPatch, InterModelTransfer

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MODELS = ("toy-llava", "toy-idefics2", "toy-fuyu")
MODALITIES = ("text", "image")


def markdown(table: pd.DataFrame) -> str:
    """Write a table, numbers with two digits."""
    head = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = [
        "| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |"
        for row in table.itertuples(index=False)
    ]
    return "\n".join([head, rule, *rows])


def by_recipes(name: str, seeds: int) -> str:
    """Measure all pairs of modalities, and the base language model's vectors."""
    vlm = HookedVLM.from_pretrained(name)
    parts = [
        f"### By the library's recipes, {seeds} seeds",
        "",
        "`CrossModalPatch(source=..., query=..., seeds=3)`: test rows of the paper's six tasks; the"
        " block is chosen on the validation rows. 95 % intervals of the mean are over queries.",
    ]
    for source, query in product(MODALITIES, MODALITIES):
        result = CrossModalPatch(source=source, query=query, seeds=seeds).run(vlm)
        title = f"{source} examples, {query} queries: block {result.layer}"
        parts += ["", f"#### {title}", "", markdown(result.summary())]
        print(title, result.accuracy(), flush=True)  # noqa: T201
    parts += [
        "",
        f"#### Vectors of {base_of(name)}",
        "",
        "`InterModelTransfer`: the base language model's vectors in the vision-language model, "
        f"beside those of {unrelated_of(name)}, which it was not made from.",
    ]
    for query in MODALITIES:
        recipe = InterModelTransfer(
            query=query, seeds=seeds, source_model=base_of(name), unrelated_model=unrelated_of(name)
        )
        result = recipe.run(vlm)
        parts += ["", f"{query.capitalize()} queries, block {result.layer}:", ""]
        parts += [markdown(result.summary())]
        print(f"base, {query} queries", result.table.to_string(), flush=True)  # noqa: T201
    return "\n".join(parts)


def by_plain_hooks(path: Path, seen: Path) -> str:
    """Write the evaluation with plain transformers, without the long list of decodings."""
    text = evaluate.markdown(json.loads(path.read_text()))
    kept = text.split("## Top decodings")[0].replace("\n## ", "\n#### ").strip()
    kept = kept.removeprefix("## ")
    return "\n".join(
        [
            "### By plain transformers and plain hooks",
            "",
            f"`python -m scripts.zoo.evaluate`, one seed, its own draws; all of it is in `{seen}`.",
            "",
            f"#### {kept}",
        ]
    )


def of_the_language_model(path: Path) -> str:
    """Write what the same evaluation measured on the base language model."""
    results = json.loads(path.read_text())["tasks"]
    rows = {
        "No Context": [r["llm"]["no_context"] for r in results.values()],
        "Prompt, 5 examples": [r["llm"]["prompt"] for r in results.values()],
    }
    curves = pd.DataFrame([r["llm"]["patch"] for r in results.values()], index=list(results)).T
    best = int(curves.mean(axis=1).idxmax())
    rows[f"Patch after block {best}"] = curves.loc[best].tolist()
    by_task = pd.DataFrame(rows, index=list(results)).T
    by_task["mean"] = by_task.mean(axis=1)
    by_block = curves.mean(axis=1).to_frame("text -> text, mean of six tasks").T
    tables = [by_task.reset_index(names=""), by_block.reset_index(names="patch after block")]
    note = (
        "`python -m scripts.zoo.evaluate`: plain transformers and plain hooks, test rows; vectors "
        "are means over 30 validation prompts of 5 examples, read at the 5th example's delimiter."
    )
    return "\n\n".join([note, *map(markdown, tables)])


def fill(name: str, measured: str) -> None:
    """Put text between the marks of a card."""
    card = zoo.path(name) / "README.md"
    before, _, rest = card.read_text().partition(BEGIN)
    card.write_text(f"{before}{BEGIN}\n{measured}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--evaluation", type=Path, required=True, help="of scripts.zoo.evaluate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in (args.model, base_of(args.model)):
        card = zoo.path(name) / "README.md"
        if any(card.read_text().count(mark) != 1 for mark in (BEGIN, END)):
            sys.exit(f"{card} must hold {BEGIN} and {END} once each")
    fill(base_of(args.model), of_the_language_model(args.evaluation))
    plain = by_plain_hooks(args.evaluation, args.evaluation)
    fill(args.model, f"{by_recipes(args.model, args.seeds)}\n\n{plain}")


if __name__ == "__main__":
    main()
