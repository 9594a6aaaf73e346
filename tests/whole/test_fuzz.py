"""A sample of the random comparison with plain transformers; `python -m scripts.fuzz` runs more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fuzzing import MODELS, run_group

from vlm_lens import ops

ROUNDS = 4  # the last of them in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(MODELS)), ids=MODELS)
def test_random_changes_equal_plain_hooks(index):
    for number in range(index, ROUNDS * len(MODELS), len(MODELS)):
        title, outcome = run_group(number, seed=1)
        assert outcome.cases and not outcome.failures, (title, outcome.failures)


_APPLY, _MEANS, _PLACES = ops.apply_op, ops._means, ops._places


def _late(op: ops.Op, x: torch.Tensor, offset: int = 0, *more):
    return _APPLY(op, x, offset - 1, *more)


def _twice(op: ops.Op, x: torch.Tensor, offset: int = 0, *more):
    tensors = {k: 2 * v for k, v in op.tensors.items()} if op.kind == ops.ADD else op.tensors
    return _APPLY(replace(op, tensors=tensors), x, offset, *more)


def _mixed(pool: torch.Tensor, x: torch.Tensor, offset: int):
    found = _MEANS(pool, x, offset)
    return found.mean(0, keepdim=True).expand_as(found)


def _seen(hidden: torch.Tensor, scores: torch.Tensor, rows: torch.Tensor):
    return scores


def _as_before(op: ops.Op, meant: torch.Tensor, pattern: torch.Tensor, *more):
    return pattern


def _at_next(op: ops.Op, x: torch.Tensor, offset: int, *more):
    """New tokens are changed from the second one on."""
    late = op if op.since is None else replace(op, since=op.since + 1)
    return _PLACES(late, x, offset, *more)


def _in_half(x: torch.Tensor) -> torch.dtype:
    return torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "broken"),
    (
        ("vlm_lens.engine.handlers.apply_op", _late),
        ("vlm_lens.engine.handlers.apply_op", _twice),
        ("vlm_lens.ops._means", _mixed),
        ("vlm_lens.ops._blocked", _seen),
        ("vlm_lens.ops._weighed", _as_before),
        ("vlm_lens.ops._places", _at_next),
        ("vlm_lens.ops._precise", _in_half),
    ),
)
def test_a_broken_kernel_is_found(name, broken, monkeypatch):
    """The comparison sees faults of the kernel, which all engines share."""
    monkeypatch.setattr(name, broken)
    assert any(run_group(number, seed=2)[1].failures for number in range(200))
