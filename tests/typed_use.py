"""The public surface as an editor sees it, for the static type checker alone; nothing runs it.

A line marked `type: ignore` must be an error: a mark that is not needed fails `make lint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from PIL import Image
from torch import Tensor

from vlm_lens import ActivationCache, Find, HookedVLM, Last, Layout, Point, Prompt, RawPrompt
from vlm_lens.hooked.generation import Generation
from vlm_lens.points.table import PointTable
from vlm_lens.sweep.result import SweepResult


def use(vlm: HookedVLM, picture: Image.Image) -> None:
    """Every door, with every form that it takes."""
    assert_type(HookedVLM.from_pretrained("toy-llava", device="cpu"), HookedVLM)
    prompt = vlm.prompt("Q:<image>\nA:", images=[picture])
    assert_type(prompt, Prompt)
    assert_type(prompt.layout, Layout)
    vlm.prompt("<image>", Path("a.png"))
    vlm.prompt(["<image>", "text"], [[picture], []])
    vlm.prompt([RawPrompt("<image>", (picture,)), "text"])
    vlm.chat([{"role": "user", "content": "text"}], enable_thinking=False)
    assert_type(vlm.points("vision.*"), PointTable)
    assert_type(vlm.points()["resid_post", 3], Point)
    assert_type(vlm.run({"input_ids": [[1, 2]]}), Tensor)
    assert_type(vlm.generate(prompt, max_new_tokens=3), Generation)
    logits, cache = vlm.run_with_cache(prompt, names_filter=["blocks.*.hook_resid_post"])
    assert_type(cache, ActivationCache)
    assert_type(cache["resid_post", 3], Tensor)
    assert_type(cache.select("hook_merged", at=Last()), Tensor)
    vlm.run_with_cache(prompt, positions=Find(":", -3))
    vlm.run_with_hooks(prompt, fwd_hooks=[("blocks.2.attn.hook_z", lambda z, hook: z * 0)])
    assert_type(vlm.sweep(prompt, [], measure="top1"), SweepResult)
    with vlm.intervening(()) as changed:
        assert_type(changed, HookedVLM)

    vlm.run(3)  # type: ignore[arg-type]
    vlm.run(prompt, interventons=())  # type: ignore[call-arg]
    vlm.prompt("<image>", images=3)  # type: ignore[arg-type]
    vlm.generate(prompt, max_new_tokens=2.5)  # type: ignore[arg-type]
    vlm.hf_modle  # type: ignore[attr-defined]  # noqa: B018
    from vlm_lens import HookedVLN  # type: ignore[attr-defined]  # noqa: F401
