"""Settings for all tests, and the tiny models that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# also of the processes that tests start: two at a time, each with a thread for every core, wait for
# one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook  # noqa: E402

# What a user calls is checked against its annotations, in tests only. The engine, the sites and the
# tables of points are left out, because they run at every point of every forward and are checked by
# value; prompts, because they say themselves what is wrong with what they are given.
CHECKED = (
    "hooked.cache", "hooked.generation", "hooked.hooked_model", "interventions", "layout", "lenses",
    "model.hooked_vlm", "model.loading", "points.config", "reading.vectors", "serial", "tokens",
)  # fmt: skip
install_import_hook([f"vlm_lens.{name}" for name in CHECKED], "typecheck.checked")

import pytest  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

from vlm_lens import HookedVLM  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """A tiny model by its short name, saved to a folder and loaded from it, once."""
    made: dict[str, HookedVLM] = {}

    def loaded(name: str) -> HookedVLM:
        if name not in made:
            folder = tiny.save(name, tmp_path_factory.mktemp(name))
            made[name] = HookedVLM.from_pretrained(folder)
        return made[name]

    return loaded


@pytest.fixture(params=tiny.VLMS)
def vlm(request, load) -> HookedVLM:
    """Each tiny vision-language model."""
    return load(request.param)


@pytest.fixture(params=tiny.LMS)
def lm(request, load) -> HookedVLM:
    """Each tiny language model."""
    return load(request.param)


@pytest.fixture(params=(*tiny.VLMS, *tiny.LMS))
def model(request, load) -> HookedVLM:
    """Each tiny model."""
    return load(request.param)


@pytest.fixture
def clip(load) -> Iterator[HookedVLM]:
    """The tiny LLaVA with a CLIP tower and a Llama; gradients of a test are gone after it."""
    vlm = load("clip-llama")
    yield vlm
    vlm.hf_model.zero_grad(set_to_none=True)


@pytest.fixture
def siglip(load) -> HookedVLM:
    """The tiny LLaVA with a SigLIP tower and a Mistral."""
    return load("siglip-mistral")


@pytest.fixture
def llama(load) -> HookedVLM:
    """The tiny Llama."""
    return load("llama")


@pytest.fixture
def picture():
    """A picture of random pixels."""
    return tiny.noise_picture(1, (40, 30))


@pytest.fixture
def no_forward(monkeypatch):
    """Makes any forward of a model an error: `no_forward(vlm)`."""

    def forbid(vlm: HookedVLM) -> None:
        def refuse(*args, **kwargs):
            raise AssertionError("the model ran although the request was wrong")

        monkeypatch.setattr(vlm.hf_model, "forward", refuse)

    return forbid


@pytest.fixture(scope="session")
def browser():
    """A Chromium without a window; tests that need one are skipped where there is none."""
    from browser import WHY_NONE, Browser, chromium

    if chromium() is None:
        pytest.skip(WHY_NONE)
    with Browser() as opened:
        yield opened
