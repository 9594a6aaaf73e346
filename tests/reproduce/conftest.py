"""Tiny random models of the paper's architectures, and a small folder of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from families import tiny_fuyu, tiny_idefics2

from vlm_lens.tasks import Task

VALIDATION, TEST = 6, 6  # the fewest that five examples and a query take
_NAMES = ("country-capital", "country-currency")
_VQA = ("food-class", "shirt-color", "man-holding")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Two of the paper's tasks and its three questions, in the authors' form, a few rows each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    for name in (*_NAMES, *_VQA):
        rows = Task.load(name if name in _NAMES else "food-color").validation
        rows = rows[: VALIDATION + TEST]
        for split, part in (("val", rows[:VALIDATION]), ("test", rows[VALIDATION:])):
            records = []
            for row in part:
                path = f"images/{row.input}.png"
                row.image.resize((32, 32)).save(folder / path)
                records.append({"input": row.input, "image": path, "output": row.output})
            (folder / "annotations" / f"{name}_{split}.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny random models with real processors, and of a base language model."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "llava": tiny.save("clip-qwen2", root / "llava"),
        "idefics2": tiny_idefics2.save(root / "idefics2"),
        "fuyu": tiny_fuyu.save(root / "fuyu"),
        "llm": tiny.save("qwen2", root / "llm"),
    }
