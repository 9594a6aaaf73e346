"""What is read is what the model computed, and stays so for as long as anybody can see it."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import tiny
import torch
from torch import Tensor

from vlm_lens import HookedVLM
from vlm_lens.engine import buffers
from vlm_lens.engine.buffers import Buffers

SIZE = 1 << 15  # numbers of 4 bytes: enough to be kept


@pytest.fixture
def small(monkeypatch):
    """Memory of every size is kept, as the tests' models are tiny."""
    monkeypatch.setattr(buffers, "_LEAST", 1)


@torch.no_grad()
def read(pool: Buffers, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """An activation that only a reader has seen, as it is handed out."""
    return pool.reader().keep(torch.full((SIZE,), value, dtype=dtype))


def test_memory_is_used_again_once_it_is_let_go_of():
    pool = Buffers()
    first = read(pool, 1.0)
    place = first.data_ptr()
    second = read(pool, 2.0)
    assert second.data_ptr() != place and first.eq(1).all()
    del first
    gc.collect()
    third = read(pool, 3.0)
    assert third.data_ptr() == place and third.eq(3).all() and second.eq(2).all()
    half = read(pool, 4.0, torch.float16)  # of another size
    assert half.dtype == torch.float16 and half.eq(4).all() and third.eq(3).all()


@pytest.mark.parametrize(
    "held",
    [
        lambda x: x,
        lambda x: x[3:7],
        lambda x: x.view(-1, 8).T,
        lambda x: x.detach(),
        lambda x: x.numpy(),
        lambda x: x.numpy()[2:4],
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: x.untyped_storage(),
        lambda x: x.view(torch.int32),
        lambda x: torch.nn.Parameter(x),
        lambda x: memoryview(x.numpy()),
        lambda x: {"deep": [(x[:1],)]},
    ],
)
def test_what_anybody_can_see_is_never_written_over(held):
    pool = Buffers()
    x = read(pool, 1.0)
    place, kept = x.data_ptr(), held(x)
    del x
    gc.collect()
    later = [read(pool, 2.0) for _ in range(3)]
    assert place not in [other.data_ptr() for other in later]
    del kept
    gc.collect()
    assert read(pool, 3.0).data_ptr() == place


def test_memory_that_another_process_sees_is_left_alone():
    pool = Buffers()
    x = read(pool, 1.0)
    x.share_memory_()
    place = x.data_ptr()
    del x
    gc.collect()
    assert read(pool, 2.0).data_ptr() != place


def test_layout_and_values_are_those_of_the_model():
    pool = Buffers()
    for make in (
        lambda: torch.randn(64, 512),
        lambda: torch.randn(512, 64).T,
        lambda: torch.randn(4, 64, 128).transpose(1, 2),
        lambda: torch.full((64, 512), float("nan")),
        lambda: torch.randint(0, 9, (64, 256)),
    ):
        for _ in range(3):
            x = make()
            with torch.no_grad():
                kept = pool.reader().keep(x)
            assert kept.stride() == x.stride() and kept.dtype == x.dtype
            assert torch.equal(kept.nan_to_num(7), x.nan_to_num(7))
            del kept


def test_what_is_not_copied():
    """Parts of memory, gradients, weights, and memory that torch has not made."""
    pool = Buffers()
    with torch.no_grad():
        for _ in range(2):
            reader, whole = pool.reader(), torch.randn(4, SIZE)
            for x in (whole[1:3], whole.T[:, 1:], torch.nn.Parameter(torch.randn(SIZE)),
                      torch.from_numpy(whole.numpy()), torch.randn(8),
                      torch.randn(2, SIZE)[:1].expand(2, -1)):  # fmt: skip
                assert reader.keep(x) is x
            del whole
    x = torch.randn(SIZE)
    assert pool.reader().keep(x) is x  # gradients may be recorded
    assert pool.n_bytes == 0


def test_one_activation_is_kept_once_and_a_changed_one_twice():
    pool = Buffers()
    read(pool, 0.0), read(pool, 0.0)
    first, second = read(pool, 0.0), read(pool, 0.0)
    del first, second
    with torch.no_grad():
        reader, x = pool.reader(), torch.ones(SIZE)
        one, same = reader.keep(x), reader.keep(x)
        assert one is same and one is not x
        x.mul_(2)
        other = reader.keep(x)
    assert one.eq(1).all() and other.eq(2).all()


def test_views_of_one_memory_are_noted_once():
    pool = Buffers()
    with torch.no_grad():
        x = torch.ones(4, SIZE)
        for reader in (pool.reader(), pool.reader()):  # what a model gives again, likewise
            for view in (x, x.view(-1), x.T):
                assert reader.keep(view) is view
        assert pool.n_bytes == x.nbytes
        place = x.data_ptr()
        del x, view, reader
        gc.collect()
        assert pool.reader().keep(torch.zeros(4, SIZE)).data_ptr() == place


def test_what_stays_with_the_process_is_bounded(monkeypatch):
    monkeypatch.setattr(buffers, "_MOST", 10 * SIZE)
    pool = Buffers()
    held = [read(pool, float(i)) for i in range(6)]
    assert pool.n_bytes <= 10 * SIZE
    assert all(x.eq(i).all() for i, x in enumerate(held))
    del held
    read(pool, 0.0, torch.float64)  # what a run finds no use for is given back after it
    gc.collect()
    assert pool.n_bytes <= 8 * SIZE
    for sent in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert sent.n_bytes == 0 and read(sent, 1.0).eq(1).all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ("clip-llama", "qwen2"))
def test_caches_of_many_runs_are_those_of_a_model_that_keeps_nothing(load, name):
    """Held or let go of, cut, nested in other runs: every cache is what plain reading gives."""
    vlm, fresh = load(name), HookedVLM(tiny.build(name), tiny.reader(name))
    fresh._buffers.reader = lambda: Buffers.reader(Buffers())
    texts = ["a b c d", "e f g h", "a b c d", "d c b a", "a b"] * 2
    held, expected = [], []
    for i, text in enumerate(texts):
        logits, cache = vlm.run_with_cache(text)
        other, reference = fresh.run_with_cache(text)
        assert torch.equal(logits, other)
        for point, value in reference.items():
            assert torch.equal(cache[point], value) and cache[point].stride() == value.stride()
        if i % 3 == 0:  # one in three is kept
            held.append(cache)
            expected.append({point: value.clone() for point, value in reference.items()})
        inner = []

        def look(x, hook, inner=inner, text=text):
            inner.append(vlm.run_with_cache(text, names_filter="blocks.*.hook_resid_post")[1])

        vlm.run_with_hooks(text, fwd_hooks=[("blocks.1.hook_resid_pre", look)])
        for point, value in inner[0].items():
            assert torch.equal(value, reference[point])
    assert vlm._buffers.n_bytes > 0
    for cache, values in zip(held, expected, strict=True):
        assert all(torch.equal(cache[point], value) for point, value in values.items())
