"""Workers of Ray give what this process gives, also when one dies, or this process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from distributed.jobs import assert_same, dying_measure, grid
from vlm_lens import ActivationPatch, Find, Last, TaskVector, VLMLensError
from vlm_lens.distributed import Ray, on_ray
from vlm_lens.distributed.on_ray import connect
from vlm_lens.reading.many import read_each
from vlm_lens.reproduce import execute, make_plan
from vlm_lens.tasks import Task

pytestmark = pytest.mark.slow  # Ray starts, and its workers import torch


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray")  # here, because it takes seconds


@pytest.fixture(scope="module")
def workers(vlm, ray):
    """Two for all tests, on one core of the two that this Ray has: the other is for those that
    tests start."""
    vlm.run("<image>A:", [tiny.noise_picture(1)])  # transformers puts hooks of its own on the tower
    with pytest.MonkeyPatch.context() as patch:  # two GPUs, for all that Ray knows
        patch.setattr(ray, "init", partial(ray.init, num_gpus=2))
        connect(None)
    with Ray(workers=2, num_cpus=0.5, num_gpus=1).open(vlm) as open_workers:
        yield open_workers
    ray.shutdown()


def wait_for_cores(ray, n: float) -> None:
    """Waits until so many are free; those of a worker that has ended are so a moment later."""
    while ray.available_resources().get("CPU", 0) < n:
        time.sleep(0.05)


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


def test_each_worker_has_a_gpu_of_its_own_and_they_share_by_fractions(vlm, workers):
    def seen(vlm, chunk):
        time.sleep(0.1)
        yield os.environ["CUDA_VISIBLE_DEVICES"]

    found = set()
    for gpu in workers.run(seen, range(500)):  # one of the two may begin late
        found.add(gpu)
        if len(found) == 2:
            break
    assert found == {"0", "1"}
    for share, n in ((0.5, 4), (0.1, 20), (2, 1)):
        assert Ray(num_cpus=0.1, num_gpus=share).open(vlm).n == n
    for asks in (Ray(num_gpus=3), Ray(num_gpus=2, num_cpus=99)):
        with pytest.raises(VLMLensError, match="this Ray has .* CPU and 2 GPU"):
            asks.open(vlm)


def test_prompts_read_by_workers_are_in_order(vlm, workers, tmp_path):
    task = Task.load("country-capital")
    prompts = [task.examples(n, modality=m, seed=n) for n in (1, 4, 2) for m in ("text", "image")]
    here = TaskVector.read(vlm, prompts, at=Find(":", -3))
    found = TaskVector.read(vlm, prompts, at=Find(":", -3), batch_size=2, on=workers)
    torch.testing.assert_close(found.values, here.values)
    assert found.prompts == here.prompts
    saved = read_each(vlm, prompts, at=Last(), batch_size=1, on=workers, save=tmp_path / "readings")
    alone = read_each(vlm, prompts, at=Last(), batch_size=1)
    torch.testing.assert_close(saved.load(), alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(VLMLensError, match="holds 2 positions; a vector is read at one"):
        read_each(vlm, prompts, at=[-1, -2], on=workers)


def test_weights_lie_in_the_store_once(vlm, workers):
    largest = max(vlm.hf_model.state_dict().items(), key=lambda item: item[1].nbytes)[0]

    def where(vlm, chunk):
        address = vlm.hf_model.state_dict()[largest].data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if start <= address < end:
                yield chunk, os.getpid(), line.split()[5], address - start
        time.sleep(0.1)

    found = []
    for one in workers.run(where, range(500)):
        found.append(one)
        if len({process for _, process, _, _ in found}) == 2:
            break
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


def test_a_killed_driver_leaves_what_was_finished(vlm, ray, workers, tmp_path):
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


def test_models_loaded_by_name_are_waited_for_and_what_has_no_place_is_refused(
    vlm, ray, workers, monkeypatch
):
    prompt, asked = vlm.prompt("Q:France\nA:"), grid(vlm, 1)
    for asks, match in ((Ray(num_cpus=999), "999 CPU"), (Ray(num_gpus=64), "64 GPU")):
        with pytest.raises(VLMLensError, match=match):
            vlm.sweep(prompt, asked, on=asks, progress=False)
    with pytest.raises(VLMLensError, match="connected to the Ray at"):
        vlm.sweep(prompt, asked, on="127.0.0.1:9", progress=False)
    monkeypatch.setattr(on_ray, "_PATIENCE", 0.5)  # less than a worker's import of torch takes
    total = ray.cluster_resources()["CPU"]
    wait_for_cores(ray, total - 1)
    here = vlm.sweep(prompt, asked, progress=False)
    assert_same(vlm.sweep(prompt, asked, on=Ray(workers=1, load=True), progress=False), here)

    @ray.remote
    class Other:
        def here(self):
            return True

    wait_for_cores(ray, total - 1)
    other = Other.options(num_cpus=total - 1).remote()
    assert ray.get(other.here.remote())
    try:
        with pytest.raises(VLMLensError, match=f"no room for a worker of {total:g} CPU"):
            vlm.sweep(prompt, asked, on=Ray(workers=1, num_cpus=total), progress=False)
    finally:
        ray.kill(other)


def test_reproduce_on_ray_is_reproduce_here(workers, tmp_path):
    workers.close()  # two others, each with a core, take their place
    (plan,) = make_plan(
        ["figure8"], ["toy-llava"], tasks=["country-capital"], seeds=1, out=tmp_path / "ray"
    )
    (alone,) = make_plan(
        ["figure8"], ["toy-llava"], tasks=["country-capital"], seeds=1, out=tmp_path / "here"
    )
    said: list[str] = []
    found = execute(plan, on="ray", jobs=2, say=said.append)
    here = execute(alone)
    assert not found.failed and len(said) == len(plan.runs) > 1
    for name, result in here.results.items():
        assert found.results[name].to_dataframe().equals(result.to_dataframe()), name
