"""The kernel against naive loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lens.ops import ADD, MEAN, SET, IncompleteMean, Op, apply_op

ROWS, LENGTH, HEADS, WIDTH = 3, 5, 4, 2


@st.composite
def activations(draw, heads: bool | None = None):
    seed = draw(st.integers(0, 2**16))
    heads = draw(st.booleans()) if heads is None else heads
    shape = (ROWS, LENGTH, HEADS, WIDTH) if heads else (ROWS, LENGTH, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


places = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, LENGTH + 3)), min_size=1, unique=True
)
some_heads = st.lists(st.integers(0, HEADS - 1), min_size=1, unique=True)


def naive(op: Op, x: torch.Tensor, offset: int) -> tuple[torch.Tensor, int]:
    out, written = x.clone(), 0
    pairs = list(zip(op.rows, op.positions, strict=True))
    if op.since is not None:
        pairs = [(r, p + offset) for r in range(len(x)) for p in range(x.shape[1])]
        pairs = [(r, p) for r, p in pairs if p >= op.since]
    for number, (row, position) in enumerate(pairs):
        local = position - offset
        if not 0 <= local < x.shape[1]:
            continue
        for index in op.heads if op.heads is not None else [None]:
            here = x[row, local] if index is None else x[row, local, index]
            if op.kind == MEAN:
                mean = int(op.tensors["takes"][number])
                pool = [(r, p) for r, p, m in op.tensors["pool"].tolist() if m == mean]
                values = [x[r, p - offset] for r, p in pool]
                new = torch.stack(values).mean(0)
                new = new if index is None else new[index]
            else:
                value = op.tensors["value"]
                new = value[number if len(value) > 1 else 0]
                if index is not None:
                    new = new[op.heads.index(index) if len(new) > 1 else 0]
                new = new.expand_as(here)
                new = here + new if op.kind == ADD else new
            target = out[row, local] if index is None else out[row, local, index]
            target.copy_(new)
            written += here.numel()
    return out, written


@settings(deadline=None, max_examples=150)
@given(
    activations(), places, some_heads, st.sampled_from([SET, ADD]), st.integers(0, 3),
    st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**16),
)  # fmt: skip
def test_set_and_add_are_the_naive_loop(
    x, pairs, heads, kind, offset, each_place, each_head, wide, seed
):
    headed = x.dim() == 4
    heads = tuple(heads) if headed else None
    shape = [len(pairs) if each_place else 1, WIDTH if wide else 1]
    if headed:
        shape.insert(1, len(heads) if each_head else 1)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rows, positions = zip(*pairs, strict=True)
    op = Op("point", kind, rows, positions, heads, {"value": value})
    before = x.clone()
    out, written = apply_op(op, x, offset)
    expected, count = naive(op, x, offset)
    assert torch.equal(out, expected)
    assert written == count
    assert torch.equal(x, before)  # what was given is left as it is
    if written == 0:
        assert out is x


@settings(deadline=None, max_examples=60)
@given(activations(heads=True), places, some_heads, st.data())
def test_mean_is_the_naive_loop(x, pairs, heads, data):
    x = x.double()
    pairs = [(r, p) for r, p in pairs if p < LENGTH] or [(0, 0)]
    place = st.tuples(st.integers(0, ROWS - 1), st.integers(0, LENGTH - 1))
    groups = data.draw(st.lists(st.lists(place, min_size=1, unique=True), min_size=1, max_size=3))
    pool = [(r, p, mean) for mean, group in enumerate(groups) for r, p in group]
    number = st.integers(0, len(groups) - 1)
    takes = data.draw(st.lists(number, min_size=len(pairs), max_size=len(pairs)))
    rows, positions = zip(*pairs, strict=True)
    tensors = {"pool": torch.tensor(pool), "takes": torch.tensor(takes)}
    op = Op("point", MEAN, rows, positions, tuple(heads), tensors)
    out, written = apply_op(op, x)
    expected, count = naive(op, x, 0)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert written == count


@settings(deadline=None, max_examples=60)
@given(activations(), st.integers(0, 9), st.integers(0, 6), st.sampled_from([SET, ADD]))
def test_since_acts_from_a_position_on(x, since, offset, kind):
    value = torch.ones((1, 1, WIDTH) if x.dim() == 4 else (1, WIDTH))
    op = Op("point", kind, tensors={"value": value}, since=since)
    out, written = apply_op(op, x, offset)
    expected, count = naive(op, x, offset)
    assert torch.equal(out, expected)
    assert written == count


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="Unknown kind"):
        apply_op(
            Op("p", "multiply", (0,), (0,), None, {"value": torch.ones(1, 1)}), torch.ones(1, 1, 1)
        )


def test_value_takes_the_dtype_of_the_activation():
    x = torch.zeros(1, 2, 2, dtype=torch.bfloat16)
    out, _ = apply_op(Op("p", SET, (0,), (1,), None, {"value": torch.full((1, 1), 0.1)}), x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0, 1], torch.full((2,), 0.1).bfloat16())


def test_gradients_flow_through_a_write():
    x = torch.ones(1, 3, 2, requires_grad=True)
    out, _ = apply_op(Op("p", SET, (0,), (1,), None, {"value": torch.zeros(1, 1)}), x)
    out.sum().backward()
    assert x.grad.tolist() == [[[1, 1], [0, 0], [1, 1]]]


def test_a_mean_of_which_a_part_is_elsewhere_is_refused():
    x = torch.ones(1, 3, 2)
    tensors = {"pool": torch.tensor([[0, 0, 0], [0, 4, 0]]), "takes": torch.tensor([0])}
    op = Op("p", MEAN, (0,), (4,), None, tensors)
    assert apply_op(op, x) == (x, 0)  # its place is elsewhere too
    with pytest.raises(IncompleteMean, match="positions 0 to 4, and this call computes 3 to 5"):
        apply_op(op, x, offset=3)


@settings(deadline=None, max_examples=100)
@given(
    activations(heads=True), places, some_heads, st.sampled_from([SET, ADD]), st.integers(0, 3),
    st.sets(st.integers(0, LENGTH - 1), min_size=1), st.one_of(st.none(), st.integers(0, 9)),
)  # fmt: skip
def test_an_activation_of_some_positions_is_that_part_of_the_whole(
    x, pairs, heads, kind, offset, kept, since
):
    """Rows of attention: only those that are needed are computed."""
    value = torch.randn(1 if since is not None else len(pairs), 1, WIDTH)
    rows, positions = ((), ()) if since is not None else zip(*pairs, strict=True)
    op = Op("p", kind, rows, positions, tuple(heads), {"value": value}, since)
    whole, _ = apply_op(op, x, offset)
    local = sorted(kept)
    held = [offset + p for p in local]
    found, written = apply_op(op, x[:, local], offset, held, offset + LENGTH)
    assert torch.equal(found, whole[:, local])
    assert (written == 0) == torch.equal(found, x[:, local])


@pytest.mark.parametrize("held", [None, (1, 4)])
def test_keys_are_hidden_and_weighed_by_a_naive_loop(held):
    """Two rows of five positions; keys of the row of the query only."""
    scores = torch.randn(2, 5, 2, 5, generator=torch.Generator().manual_seed(0))
    pattern = scores.softmax(-1)
    keys = torch.tensor([[0, 0], [0, 2], [1, 3]])
    places = ((0, 1, 1), (4, 1, 4))
    index = range(5) if held is None else list(held)

    def both(kind, x, **tensors):
        op = Op("p", kind, *places, (1,), {"keys": keys, **tensors})
        part = x if held is None else x[:, list(held)]
        return apply_op(op, part, 0, held, None if held is None else 5)[0]

    hidden, times, to = scores.clone(), pattern.clone(), pattern.clone()
    for row, query in zip(*places, strict=True):
        mine = [int(k) for r, k in keys if r == row]
        hidden[row, query, 1, mine] = -torch.inf
        times[row, query, 1, mine] *= 3
        times[row, query, 1] /= times[row, query, 1].sum()
        rest = [k for k in range(5) if k not in mine]
        to[row, query, 1, rest] *= (1 - 0.1 * len(mine)) / to[row, query, 1, rest].sum()
        to[row, query, 1, mine] = 0.1
    index = list(index)
    assert torch.equal(both("block", scores), hidden[:, index])
    three, tenth = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 0.1)
    torch.testing.assert_close(both("share", pattern, times=three), times[:, index])
    torch.testing.assert_close(both("share", pattern, to=tenth), to[:, index])
