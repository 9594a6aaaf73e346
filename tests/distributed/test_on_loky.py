"""Processes of this machine give what this process gives, also when one dies."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from distributed.jobs import assert_same, dying_measure, grid
from vlm_lens import ActivationPatch, Last, VLMLensError
from vlm_lens.distributed import Loky

pytestmark = pytest.mark.slow  # processes import torch first


@pytest.fixture(scope="module")
def workers(vlm):
    with Loky(2).open(vlm) as open_workers:
        yield open_workers


def test_a_sweep_is_that_of_this_process(vlm, workers, tmp_path):
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 10)
    here = vlm.sweep(prompt, asked, progress=False)
    with vlm.intervening(ActivationPatch("blocks.0.hook_mlp_out", at=Last(), value=0.5)):
        changed = vlm.sweep(prompt, asked, progress=False)
        found = vlm.sweep(prompt, asked, on=workers, progress=False)
        assert_same(found, changed)
        assert found.engines == changed.engines == {"full": len(changed)}
    found = vlm.sweep(prompt, asked, on=workers, save=tmp_path / "it", progress=False)
    assert_same(found, here)
    assert found.engines == here.engines and found.baseline[0] == pytest.approx(here.baseline[0])
    again = vlm.sweep(prompt, asked, on="ray://not:1", save=tmp_path / "it", progress=False)
    assert_same(again, found, close=0)  # nothing was left to do: no workers were asked for
    with pytest.raises(VLMLensError, match="does not fit"):
        vlm.sweep(
            prompt, [ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=torch.ones(3))],
            on=workers, progress=False,
        )  # fmt: skip


def test_many_prompts_in_batches(vlm, workers, tmp_path):
    texts = [f"Q:{n}\nA:" for n in ("France", "Peru", "Chad", "Greece", "Japan")]
    edit = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=0.5).each_layer()
    here = vlm.sweep(texts, edit, batch_size=2, progress=False)
    found = vlm.sweep(texts, edit, batch_size=2, on=workers, save=tmp_path / "it", progress=False)
    assert_same(found, here)
    assert found.engines == here.engines and len(found.baseline) == 5


def test_what_a_task_raises_and_where_it_ran(workers):
    def where(vlm, chunk):
        yield chunk, os.getpid(), torch.get_num_threads()

    found = list(workers.run(where, range(7)))
    assert sorted(chunk for chunk, _, _ in found) == list(range(7))
    assert os.getpid() not in {process for _, process, _ in found}
    assert {threads for _, _, threads in found} == {1}

    def wrong(vlm, chunk):
        yield [][chunk]

    with pytest.raises(IndexError) as error:
        list(workers.run(wrong, [0]))
    assert "In a worker" in error.value.__notes__[0] and "wrong" in error.value.__notes__[0]
    with pytest.raises(VLMLensError, match="What was found cannot be sent"):
        list(workers.run(lambda vlm, chunk: [threading.Lock()], [0]))


def test_a_worker_that_is_killed_is_replaced(vlm, workers, tmp_path):
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 20)
    measure = dying_measure(tmp_path, after=100)
    found = vlm.sweep(prompt, asked, measure=measure, on=workers, progress=False)
    assert (tmp_path / "died").exists()
    assert_same(found, vlm.sweep(prompt, asked, measure=measure, progress=False))
    assert sum(found.engines.values()) == len(found) == 20 * 3 * vlm.cfg.n_layers
