"""The training log as a picture: accuracies over steps, stage after stage, in one SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["draw_curves"]

_NAMES = {
    "name_acc": "names, text",
    "context_acc": "prompts, text",
    "patch_acc": "task interchange",
    "blank_acc": "blank interchange",
    "match_acc": "pictures matched",
    "image_name_acc": "names, pictures",
    "image_context_acc": "prompts, pictures",
    "image_patch_acc": "picture interchange",
}
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d31", "#56b4e9", "#e69f00", "#555555")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 300, 46, 28, 150, 40
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#888;fill:none}.stage{stroke:#bbb;"
    "stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def draw_curves(log: Path, file: Path) -> None:
    """Draw the first-token accuracies of a training log.

    Args:
        log: `train_log.jsonl`, one line of means every few steps.
        file: The SVG to write.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    ends = [max(line["step"] for line in lines if line["stage"] == stage) for stage in stages]
    starts = dict(zip(stages, (sum(ends[:i]) for i in range(len(ends))), strict=True))
    total = sum(ends)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(stage: str, step: float) -> float:
        return _LEFT + wide * (starts[stage] + step) / total

    def y(accuracy: float) -> float:
        return _TOP + high * (1 - accuracy)

    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{_TOP + high}H{_LEFT + wide}"/>']
    parts += [_text(_LEFT - 6, y(t) + 4, f"{t:g}", "end") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(_text(_LEFT, _TOP - 12, "accuracy in training", "start"))
    for stage, length in zip(stages, ends, strict=True):
        left = x(stage, 0)
        parts.append(f'<path class="stage" d="M{left:.1f} {_TOP}V{_TOP + high}"/>')
        parts.append(_text(x(stage, length / 2), _TOP + high + 16, stage, "middle"))
    parts.append(_text(_LEFT + wide, _TOP + high + 34, f"{total} steps", "end"))
    shown = [key for key in _NAMES if any(key in line for line in lines)]
    for row, key in enumerate(shown):
        color = _COLORS[list(_NAMES).index(key)]
        parts += [
            _line(
                [(x(s, m["step"]), y(m[key])) for m in lines if m["stage"] == s and key in m], color
            )
            for s in stages
        ]
        at = _TOP + 16 * row
        parts.append(_line([(_WIDTH - _RIGHT + 14, at), (_WIDTH - _RIGHT + 32, at)], color))
        parts.append(_text(_WIDTH - _RIGHT + 38, at + 4, _NAMES[key], "start"))
    body = "\n".join(part for part in parts if part)
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _line(points: Sequence[tuple[float, float]], color: str) -> str:
    if not points:
        return ""
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{path}"/>'


def _text(px: float, py: float, text: str, anchor: str) -> str:
    return f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
