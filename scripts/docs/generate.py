"""Writes the parts of the documentation that are tables of what the code says.

`python -m scripts.docs.generate` writes docs/_generated; with `--check` it only says whether what
is there is stale, and with `--keep FOLDER` it goes on where it was stopped. What is measured by a
run that takes hours (`paper_numbers`, the cards of the models) has scripts of its own, which write
what the run left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.docs import causal_table, commands, conformance_table, reach_table
from scripts.docs import kept as table_lines
from vlm_lens import zoo
from vlm_lens.families import family_of
from vlm_lens.points.point import Point
from vlm_lens.points.table import PointTable

OUT = Path(__file__).resolve().parents[2] / "docs" / "_generated"
MODEL = "toy-llava"
_TITLES = {
    "vision.": "Vision tower",
    "projector.": "Projector",
    "": "Language model",
}


def architecture(name: str):
    """The architecture of a zoo model, from its config."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(zoo.path(name))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return family_of(config).architecture(model)


def points_page() -> str:
    """The points of LLaVA as Markdown tables, one for each part of the model.

    No weights are loaded: a model's points follow from its config.
    """
    arch = architecture(MODEL)
    vision = arch.cfg.vision
    sections = [
        f"<!-- Written by scripts/docs/generate.py from {MODEL}: do not edit. -->\n",
        f"On `{MODEL}`: {arch.cfg.n_layers} blocks in the language model, `d_model` "
        f"{arch.cfg.d_model}, {arch.cfg.n_heads} heads of `d_head` {arch.cfg.d_head}, `d_mlp` "
        f"{arch.cfg.d_mlp}; {vision.n_layers} blocks in the tower, `d_vision` {vision.d_model}.\n",
    ]
    groups = arch.points.groups()
    for prefix, title in _TITLES.items():
        mine = [n for n in groups if _part(n) == prefix]
        sections += [f"### {title}\n", _table(arch.points, groups, mine), *_reasons(groups, mine)]
    return "\n".join(sections)


def _part(name: str) -> str:
    return next((p for p in ("vision.", "projector.") if name.startswith(p)), "")


def _table(points: PointTable, groups: dict[str, list[Point]], names: list[str]) -> str:
    rows = {row["point"]: row for row in points.rows()}
    lines = ["| point | shape | what it is | read | write |", "|---|---|---|---|---|"]
    for name in names:
        first, row = groups[name][0], rows[name]
        shape = ", ".join(first.axes)
        lines.append(
            f"| `{name}` | `[{shape}]` | {first.doc} | {row['readable']} | {row['writable']} |"
        )
    return "\n".join([*lines, ""])


def _reasons(groups: dict[str, list[Point]], names: list[str]) -> list[str]:
    """Why some points cannot be written: one line a reason."""
    reasons: dict[str, set[int | None]] = {}
    for name in names:
        for point in groups[name]:
            if not point.writable:
                reasons.setdefault(point.read_only, set()).add(point.layer)
    return [
        f"Not writable in block {', '.join(map(str, sorted(layers)))}: {reason}.\n"
        for reason, layers in reasons.items()
    ]


PAGES = {
    "points.md": points_page,
    "commands.md": commands.page,
    "conformance.md": conformance_table.page,
    "reach.md": reach_table.page,
    "causal.md": causal_table.page,
}


def main(arguments: Sequence[str] | None = None, out: Path = OUT) -> int:
    """Writes the pages, or checks them; returns 1 where the check finds a stale one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say what is stale; write nothing")
    parser.add_argument("--only", choices=PAGES, action="append", help="of these pages alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER",
                        help="keep finished lines there, and go on after a stop")  # fmt: skip
    options = parser.parse_args(arguments)
    table_lines.FOLDER = options.keep
    check, stale = options.check, []
    for name in options.only or PAGES:
        path, text = out / name, PAGES[name]()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        print(f"stale: {', '.join(stale)}; run python -m scripts.docs.generate", file=sys.stderr)
    elif stale:
        print(f"wrote {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
