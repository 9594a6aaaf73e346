"""Reads a page of the explorer back, from its description alone: base64 of 16-bit numbers."""

from __future__ import annotations

import base64
import json
import re

import numpy as np


def data(page: str) -> dict:
    """What the page's script draws from."""
    [held] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(held)


def numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


def attention(run: dict, n_tokens: int) -> np.ndarray:
    """`[layer, head, position, key]`."""
    return numbers(run["attention"]).reshape(-1, run["heads"], len(run["positions"]), n_tokens) / (
        65535
    )


def lens(run: dict) -> tuple[np.ndarray, np.ndarray]:
    """Words and probabilities, `[block, position, k]`."""
    shape = (-1, len(run["positions"]), run["lensK"])
    words = np.array(run["words"])[numbers(run["lensWords"])]
    return words.reshape(shape), numbers(run["lensProbs"]).reshape(shape) / 65535


def answers(run: dict) -> dict[str, float]:
    return dict(zip((run["words"][i] for i in run["answers"]), run["probs"], strict=True))
