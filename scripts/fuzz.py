"""Compares random runs, sweeps and generations with plain transformers and torch hooks.

    python -m scripts.fuzz --cases 20000 --seed 0 --out fuzz.jsonl

Every family's tiny model, in float32 and bfloat16; see `tests/fuzzing.py`. Groups that are finished
stand in the file, one a line, so that the same command goes on where it was stopped; at its end it
prints a summary, and its exit code is 1 if anything was wrong. `--group N` runs one group again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the tiny models' home
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from fuzzing import MODELS, PER_GROUP, model_name, run_group  # noqa: E402
from transformers.utils import logging  # noqa: E402


def finished(path: Path, seed: int) -> dict[int, dict]:
    """The groups that stand in the file, whole lines of the same seed and versions only."""
    done: dict[int, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            group = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill cut off
            continue
        if group["seed"] == seed and group["versions"] == versions():
            done[group["group"]] = group
    return done


def versions() -> list[str]:
    """Of what is compared with."""
    return [torch.__version__, transformers.__version__]


def summary(done: dict[int, dict]) -> str:
    """What the groups gave, family by family."""
    lines, table = [], {}
    for group in done.values():
        table.setdefault(group["title"].split(": ")[1], []).append(group)
    lines.append(f"{'model':34}{'cases':>7}{'wrong':>7}{'worst':>9}{'replay':>8}{'full':>6}  notes")
    for title, groups in sorted(table.items()):
        engines = sum((Counter(g["engines"]) for g in groups), Counter())
        notes = Counter(note for g in groups for note in g["notes"])
        cases, wrong = (sum(f(g) for g in groups) for f in (_cases, _wrong))
        worst = max(g["worst"] for g in groups)
        lines.append(
            f"{title:34}{cases:7}{wrong:7}{worst:9.1e}{engines['replay']:8}{engines['full']:6}  "
            + "; ".join(f"{note} ({n})" for note, n in notes.items())
        )
    kinds = sum((Counter(g["kinds"]) for g in done.values()), Counter())
    lines.append("changes: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    paths = sum((Counter(g["paths"]) for g in done.values()), Counter())
    lines.append("inside: " + ", ".join(f"{n} {path}" for path, n in sorted(paths.items())))
    cases, wrong = (sum(f(g) for g in done.values()) for f in (_cases, _wrong))
    lines.append(f"{cases} cases in {len(done)} groups, {wrong} groups wrong")
    for number, group in sorted(done.items()):
        if group["failures"]:
            lines.append(f"{group['title']} (--group {number}): {group['failures'][0][-600:]}")
    return "\n".join(lines)


def _cases(group: dict) -> int:
    return group["cases"]


def _wrong(group: dict) -> int:
    return bool(group["failures"])


def main() -> int:
    """Runs what is not in the file yet, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--seconds", type=float, help="stop after this time, to go on later")
    parser.add_argument("--models", nargs="*", choices=MODELS, help="of these models only")
    parser.add_argument("--group", type=int, help="run this group alone, again, and say all of it")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args.group is not None:
        title, outcome = run_group(args.group, args.seed)
        print(title, *outcome.failures, f"worst {outcome.worst:.2g}", sep="\n")
        return bool(outcome.failures)
    done, start = finished(args.out, args.seed), time.monotonic()
    with open(args.out, "a") as file:
        for number in range(-(-args.cases // PER_GROUP)):
            if number in done or (args.models and model_name(number) not in args.models):
                continue
            if args.seconds is not None and time.monotonic() - start > args.seconds:
                break
            title, outcome = run_group(number, args.seed)
            done[number] = {"group": number, "seed": args.seed, "versions": versions(),
                            "title": title, **asdict(outcome)}  # fmt: skip
            file.write(json.dumps(done[number]) + "\n")
            file.flush()
            if outcome.failures:
                print(f"wrong: {title}: {outcome.failures[0][-300:]}", flush=True)
    print(summary(done))
    return any(g["failures"] for g in done.values())


if __name__ == "__main__":
    sys.exit(main())
