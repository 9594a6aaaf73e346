"""Workers of Ray give what this process gives, also when one dies, or this process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distributed.jobs import assert_same, dying_measure, grid
from vlm_lens import ActivationPatch, Last, VLMLensError
from vlm_lens.distributed import Ray
from vlm_lens.distributed.on_ray import connect

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # Ray starts, and its workers import torch


@pytest.fixture(scope="module")
def workers(vlm):
    connect(None)
    with Ray(workers=2).open(vlm) as open_workers:
        yield open_workers
    ray.shutdown()


def test_a_sweep_is_that_of_this_process(vlm, workers):
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 10)
    here = vlm.sweep(prompt, asked, progress=False)
    found = vlm.sweep(prompt, asked, on=workers, progress=False)
    assert_same(found, here)
    assert found.engines == here.engines and found.baseline[0] == pytest.approx(here.baseline[0])
    logits = vlm.sweep(prompt, asked, measure="logits", on=workers, progress=False)
    expected = vlm.sweep(prompt, asked, measure="logits", progress=False)
    torch.testing.assert_close(logits.stack("logits"), expected.stack("logits"))
    with pytest.raises(VLMLensError, match="does not fit"):
        vlm.sweep(
            prompt, [ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=torch.ones(3))],
            on=workers, progress=False,
        )  # fmt: skip


def test_weights_lie_in_the_store_once(vlm, workers):
    largest = max(vlm.hf_model.state_dict().items(), key=lambda item: item[1].nbytes)[0]

    def where(vlm, chunk):
        address = vlm.hf_model.state_dict()[largest].data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if start <= address < end:
                yield chunk, os.getpid(), line.split()[5], address - start
        time.sleep(0.2)

    found = list(workers.run(where, range(6)))
    assert sorted(chunk for chunk, *_ in found) == list(range(6))
    assert len({process for _, process, _, _ in found}) == 2
    places = {place for *_, place in found} | {file for _, _, file, _ in found}
    assert len(places) == 2 and any("plasma" in str(place) for place in places)


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_done_twice(vlm, workers, tmp_path):
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 84)
    measure = dying_measure(tmp_path, after=700)
    found = vlm.sweep(
        prompt, asked, measure=measure, on=workers, save=tmp_path / "it", progress=False
    )
    assert (tmp_path / "died").exists()
    assert_same(found, vlm.sweep(prompt, asked, measure=measure, progress=False))
    assert sum(found.engines.values()) == len(found) == 84 * 3 * vlm.cfg.n_layers > 2000
    numbers = [int(n) for path in (tmp_path / "it").glob("chunk-*") for n in _numbers(path)]
    assert sorted(numbers) == list(range(len(found)))


def _numbers(path: Path) -> list[str]:
    import json

    from vlm_lens.storage.files import read_tensors

    return list(json.loads(read_tensors(path)[1]["records"]))


_DRIVER = """
import sys
from distributed.jobs import grid
from vlm_lens import HookedVLM
vlm = HookedVLM.from_pretrained("toy-llava")
vlm.sweep(vlm.prompt("Q:France\\nA:"), grid(vlm, 84), on=sys.argv[1], save=sys.argv[2])
"""


def test_a_killed_driver_leaves_what_was_finished(vlm, workers, tmp_path):
    workers.close()  # the cluster has two cores, which the other driver's workers need
    address, folder = ray.get_runtime_context().gcs_address, tmp_path / "it"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, address, str(folder)], env=env)
    started = time.monotonic()
    while not list(folder.glob("chunk-*")) and time.monotonic() - started < 120:
        assert driver.poll() is None
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 84)
    done = {int(n) for path in folder.glob("chunk-*") for n in _numbers(path)}
    assert 0 < len(done) < 2000
    found = vlm.sweep(prompt, asked, on=workers, save=folder, progress=False)
    assert sum(found.engines.values()) == len(found) - len(done)
    assert_same(found, vlm.sweep(prompt, asked, progress=False))


def test_models_loaded_by_name_and_what_ray_has_no_room_for(vlm, workers):
    workers.close()
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 1)
    here = vlm.sweep(prompt, asked, progress=False)
    assert_same(vlm.sweep(prompt, asked, on=Ray(workers=1, load=True), progress=False), here)
    for asks, match in ((Ray(num_cpus=999), "999 CPU"), (Ray(num_gpus=64), "64 GPU")):
        with pytest.raises(VLMLensError, match=match):
            vlm.sweep(prompt, asked, on=asks, progress=False)
    with pytest.raises(VLMLensError, match="connected to the Ray at"):
        vlm.sweep(prompt, asked, on="127.0.0.1:9", progress=False)
