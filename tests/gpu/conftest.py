"""Every model here twice: on the CPU, and on the device under test.

`VLM_LENS_DEVICE` names that device: `cuda` unless it is set, `standin` for the one of
`gpu/stand_in.py`, which needs no GPU. Over several, as in `cuda:0,cuda:1`, every model is spread.
Where the device is not there, all is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from families.every import LMS, VLMS

from gpu import stand_in
from gpu.spread import device_map
from vlm_lens import HookedVLM
from vlm_lens.prompts.prompt import Prompt

DEVICES = os.environ.get("VLM_LENS_DEVICE", "cuda").split(",")
STAND_IN = DEVICES[0].startswith(stand_in.NAME)


def pytest_collection_modifyitems(items):
    """Skips what needs the device, where it is not there."""
    if STAND_IN or torch.cuda.device_count() >= len(DEVICES):
        return
    for item in items:
        if item.path.parent.name == "gpu" and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test, the first of several; float32 there is float32."""
    if STAND_IN:
        if not stand_in.available:
            pytest.skip("torch has no backends in Python")
        if len(DEVICES) > 1:
            stand_in.several()
        return str(stand_in.device())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return str(torch.empty(0, device=DEVICES[0]).device)  # with its number, as tensors say it


@dataclass(frozen=True)
class Twins:
    """One model on two devices.

    Attributes:
        near: On the CPU.
        far: On the device under test.
    """

    near: HookedVLM
    far: HookedVLM

    @property
    def devices(self) -> set[torch.device]:
        """Those that the second one's weights lie on."""
        return {weight.device for weight in self.far.hf_model.parameters()}

    def __iter__(self):
        return iter((self.near, self.far))

    def prompts(self, *args, **kwargs) -> tuple[Prompt, Prompt]:
        """The same prompt for each."""
        return self.near.prompt(*args, **kwargs), self.far.prompt(*args, **kwargs)


@pytest.fixture(scope="session")
def twins(device, tmp_path_factory) -> Callable[[str], Twins]:
    """A model by its name in `families.every`, or a model that ships, on both devices."""
    made: dict[str, Twins] = {}

    def load(name: str) -> Twins:
        if name not in made:
            tiny = (VLMS | LMS).get(name)
            where = name if tiny is None else tiny.save_to(tmp_path_factory.mktemp(name))
            near = HookedVLM.from_pretrained(where)
            far = {"device": device} if len(DEVICES) == 1 else {
                "device_map": device_map(near, DEVICES)}  # fmt: skip
            made[name] = Twins(near, HookedVLM.from_pretrained(where, **far))
        return made[name]

    return load
