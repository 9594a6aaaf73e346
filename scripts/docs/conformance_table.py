"""The table of what the conformance suite says of a tiny random model of every family.

The models are those of the tests: the real architectures with real processors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.docs.kept import kept

if TYPE_CHECKING:
    from vlm_lens import HookedVLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the tiny models' home

MARKS = {"passed": "yes", "failed": "**no**", "not applicable": "–"}
NOTES = "What they lack, and what is special:"


def head() -> list[str]:
    """The table's first two lines."""
    from vlm_lens.testing.conformance import CHECKS

    return [
        "| family | points | " + " | ".join(CHECKS) + " |",
        "|" + "---|" * (len(CHECKS) + 2),
    ]


def line(title: str, vlm: HookedVLM) -> str:
    """A model's line: the whole suite on a prompt, with a picture where it takes one."""
    from tiny import noise_picture

    from vlm_lens.testing import conformance

    pictures = [noise_picture(0, (64, 48))] if vlm.family.takes_images else None
    report = conformance(vlm, ("<image>" if pictures else "") + "Q:Greece A:", pictures)
    cells = " | ".join(MARKS[r.outcome] for r in report.results)
    return f"| {title} | {len(vlm.points())} | {cells} |"


def notes(title: str, vlm: HookedVLM) -> list[str]:
    """What a model does not have, and what is special about it."""
    found = [
        f"- {title}: no `{glob}`: {reason}"
        for glob, reason in vlm.architecture.points.missing.items()
    ]
    special = (vlm.family.residual_breaks, vlm.family.not_replayable)
    return found + [f"- {title}: {reason}" for reason in special if reason]


def page() -> str:
    """The table, and what each family does not have."""
    from families.every import LMS, VLMS, Tiny

    lines, said = head(), []
    for name, tiny in (VLMS | LMS).items():

        def made(tiny: Tiny = tiny) -> tuple[str, list[str]]:
            with tempfile.TemporaryDirectory() as folder:
                vlm = tiny.load(Path(folder))
            return line(tiny.title, vlm), notes(tiny.title, vlm)

        told, noted = kept(f"conformance {name}", made)
        lines.append(told)
        said += noted
    return "\n".join([*lines, "", NOTES, "", *dict.fromkeys(said), ""])
