"""A sample of the random comparison with plain transformers; `python -m scripts.fuzz` runs more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fuzzing import MODELS, run_group

from vlm_lens import ops
from vlm_lens.engine.replay import Replayed
from vlm_lens.engine.tower import TowerReplay

ROUNDS = 4  # the last of them in bfloat16
ONE = range(list(MODELS).index("llava-siglip"), 40 * len(MODELS), len(MODELS))
PATHS = {
    "variants in the plain run", "blocks of some rows", "activations in memory let go of",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(MODELS)), ids=MODELS)
def test_random_changes_equal_plain_hooks(index):
    for number in range(index, ROUNDS * len(MODELS), len(MODELS)):
        title, outcome = run_group(number, seed=1)
        assert outcome.cases and not outcome.failures, (title, outcome.failures)


@pytest.mark.slow
def test_what_results_do_not_tell_of_is_reached():
    paths: set[str] = set()
    for number in ONE:
        paths |= set(run_group(number, seed=2)[1].paths)
        if paths == PATHS:
            break
    assert paths == PATHS


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


_COPIED = TowerReplay._copied


def _let_go(memory: torch.Tensor) -> bool:
    return True


def _of_the_next(logits: torch.Tensor) -> Replayed:
    """Each variant is given the logits of another."""
    return Replayed(logits.roll(1, 0))


def _of_another(self, *args) -> torch.Tensor:
    return 1.5 * _COPIED(self, *args)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "broken"),
    (
        ("vlm_lens.engine.buffers._is_let_go", _let_go),
        ("vlm_lens.engine.joint.Replayed", _of_the_next),
        ("vlm_lens.engine.tower.TowerReplay._copied", _of_another),
    ),
)
def test_a_fault_of_one_mechanism_is_found(name, broken, monkeypatch):
    """Of memory used again, of variants in the plain run, of rows of a tower."""
    monkeypatch.setattr(name, broken)
    assert any(run_group(number, seed=2)[1].failures for number in ONE)
