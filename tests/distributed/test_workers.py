"""Chunks on their way: each is handed out until it is done, or three workers died over it."""

from __future__ import annotations

import pytest

from vlm_lens import VLMLensError
from vlm_lens.distributed import Here
from vlm_lens.distributed.packed import unpack
from vlm_lens.distributed.workers import Queue


def test_chunks_are_taken_as_they_are_needed_and_given_again_when_a_worker_died():
    taken = []
    queue = Queue(taken.append(i) or i for i in range(3))
    first, second = queue.next(), queue.next()
    assert taken == [0, 1]
    queue.put_back(first, "killed")
    assert queue.next() is first and unpack(queue.next().chunk) == 2 and queue.next() is None
    queue.put_back(second, "killed")
    queue.put_back(first, "killed")
    assert queue.next() is second and queue.next() is first
    with pytest.raises(
        VLMLensError, match=r"3 workers in turn ended .*\(killed\).*need more memory"
    ):
        queue.put_back(first, "killed\nby the kernel")


def test_this_process_hands_out_what_it_finds_at_once():
    seen = []

    def task(vlm, chunk):
        for i in range(2):
            seen.append((chunk, i))
            yield i

    found = Here("model").run(task, iter(range(9)))
    assert next(found) == 0 and seen == [(0, 0)]
