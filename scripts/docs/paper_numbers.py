"""Write the numbers of docs/paper.md from what `vlm-lens reproduce` measured.

    vlm-lens reproduce all --model toy-llava --model toy-idefics2 --model toy-fuyu --out reproduce
    python -m scripts.docs.paper_numbers reproduce

writes docs/_generated/paper_numbers.md: the paper's statements with the numbers of each model, and
Table 2 beside the paper's. Nothing is typed by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "docs" / "_generated" / "paper_numbers.md"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    if not path.is_file():
        sys.exit(f"there is no {path}: run vlm-lens reproduce first")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(v.replace("|", "\\|") for v in one) + " |" for one in lines)


def page(folder: Path) -> str:
    """The generated part of the page.

    Args:
        folder: What `vlm-lens reproduce --out` wrote.
    """
    findings = read(folder / "findings.csv")
    models = list(dict.fromkeys(one["model"] for one in findings))
    done = list(dict.fromkeys(f"`{one['experiment']}`" for one in findings))
    about = [json.loads((folder / name / "manifest.json").read_text()) for name in models]
    seeds = sorted({one["identity"]["number of seeds"] for one in about})
    parts = [
        "<!-- Written by scripts/docs/paper_numbers.py from a run: do not edit. -->",
        f"From a run of `vlm-lens reproduce` on {', '.join(models)}, seeds 1 to {max(seeds)}: "
        f"{', '.join(done)}. 'Yes' and 'no' judge the numbers as they stand; intervals are in the "
        "report. These are small models that know their tasks from training: the numbers show what "
        "the experiments give, not what large models do.",
    ]
    by_statement: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for one in findings:
        key = one["experiment"], one["statement"]
        by_statement.setdefault(key, {})[one["model"]] = one
    rows = []
    for (experiment, statement), found in by_statement.items():
        cells = []
        for name in models:
            one = found.get(name)
            holds = {"True": "yes: ", "False": "no: "}.get(one["holds"], "") if one else ""
            cells.append(f"{holds}{one['here']}" if one else "not done")
        first = next(iter(found.values()))
        rows.append([f"`{experiment}`", statement, first["paper"], *cells])
    parts.append(table(["", "statement", "paper", *models], rows))
    parts.append("Table 2, mean over the tasks, here / paper:")
    numbers = [one for one in read(folder / "numbers.csv")
               if one["experiment"] == "table2" and one["task"] == "mean"]  # fmt: skip
    methods = list(dict.fromkeys(one["method"] for one in numbers))
    cells = {(one["method"], one["model"]): one for one in numbers}
    rows = [[method, *(beside(cells.get((method, name))) for name in models)] for method in methods]
    parts.append(table(["", *models], rows))
    return "\n\n".join(parts) + "\n"


def beside(row: dict[str, str] | None) -> str:
    """A number and the paper's."""
    if row is None:
        return ""
    printed = f"{float(row['paper']):.2f} ({row['paper_model'] or 'all'})" if row["paper"] else "–"
    return f"{float(row['here']):.2f} / {printed}"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what vlm-lens reproduce --out wrote")
    parser.add_argument("--to", type=Path, default=OUT, help="the file to write")
    options = parser.parse_args()
    options.to.write_text(page(options.folder), encoding="utf-8")
    print(f"wrote {options.to}")


if __name__ == "__main__":
    main()
