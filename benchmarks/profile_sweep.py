"""Where the time of a sweep goes: case (a), one vector at the last token of every layer.

Prints the median seconds of each part and its share of the whole; a part of another is indented.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from sweep import build, inputs_for

from vlm_lens import ActivationPatch, HookedVLM, Last
from vlm_lens.engine import joint
from vlm_lens.engine import replay as engine
from vlm_lens.engine.further import FurtherPositions
from vlm_lens.engine.suffix_cache import SuffixCache
from vlm_lens.measures import BoundLogits
from vlm_lens.sweep import run as sweeping
from vlm_lens.sweep import runner

# What is timed: name -> where the function stands.
PARTS = {
    "variants made and lowered": [(sweeping, "expand"), (sweeping, "Lowered")],
    "where they start": [(runner, "fitting")],
    "the run with its variants": [(runner, "run_jointly")],
    "  columns planned": [(joint._JointRun, "__init__")],
    "  masks and rotary embeddings": [(FurtherPositions, "arguments")],
    "  joined to the stream": [(joint._JointRun, "_grown")],
    "  the control compared": [(joint, "logits_error")],
    "the plain run": [(runner, "record")],
    "the replay": [(runner, "replay")],
    "  keys and values joined": [(SuffixCache, "update")],
    "  ops joined": [(engine._TextReplay, "_planned")],
    "  final norm and logits": [(engine._TextReplay, "_logits")],
    "measures read": [(BoundLogits, "of_plain"), (BoundLogits, "of_replay")],
}


class Times:
    """Seconds by part, of one sweep at a time."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds = clock, defaultdict(float)

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, its time added to a part."""

        def call(*args, **kwargs):
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self.clock() - start

        return call

    @contextmanager
    def watching(self, vlm: HookedVLM) -> Iterator[None]:
        """Times the parts, and the model's own, for as long as it is open."""
        model, text = vlm.hf_model.model, vlm.hf_model.model.language_model
        in_plain = {"  tower": model.vision_tower, "  projector": model.multi_modal_projector}
        with ExitStack() as stack:
            # the forwards timed below stand on modules, of which a sweep would replay nothing
            stack.enter_context(mock.patch.object(runner, "no_replay_with", lambda model: ""))
            for part, places in PARTS.items():
                for owner, name in places:
                    made = self.timed(part, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, made))
            for part, module in in_plain.items():
                stack.enter_context(self._module(part, module))
            for block in text.layers:
                stack.enter_context(self._module("blocks of the language model, in all", block))
            stack.enter_context(self._module("the output layer, in all", vlm.hf_model.lm_head))
            yield

    @contextmanager
    def _module(self, part: str, module: torch.nn.Module) -> Iterator[None]:
        forward = module.forward
        module.forward = self.timed(part, forward)
        try:
            yield
        finally:
            del module.forward


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is not idle")
    parser.add_argument("--rows", action="store_true", help="variants as rows of a batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    vlm = HookedVLM(build(args.preset, "cpu", torch.float32))
    inputs = inputs_for("cpu", torch.float32)
    prompt, vector = vlm.as_prompt(inputs), torch.randn(vlm.cfg.d_model)
    edit = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)
    options = {"progress": False, "memory": 256 << 20 if args.rows else None}
    vlm.sweep(prompt, edit.each_layer(), **options)
    found: dict[str, list[float]] = defaultdict(list)
    plain = []
    for _ in range(args.runs):
        start = clock()
        with torch.no_grad():
            vlm.hf_model(**inputs, use_cache=False)
        plain.append(clock() - start)
        times = Times(clock)
        with times.watching(vlm):
            whole = times.timed("all", vlm.sweep)
            whole(prompt, edit.each_layer(), **options)
        for part, seconds in times.seconds.items():
            found[part].append(seconds)
    medians = {part: statistics.median(values) for part, values in found.items()}
    total = medians.pop("all")
    print(f"one plain forward {statistics.median(plain):.3f} s; the sweep {total:.3f} s\n")
    print("| part | seconds | share |\n|---|---|---|")
    order = [
        *PARTS,
        "  tower",
        "  projector",
        "blocks of the language model, in all",
        "the output layer, in all",
    ]
    for part in sorted(medians, key=order.index):
        print(f"| {part} | {medians[part]:.3f} | {medians[part] / total:.0%} |")


if __name__ == "__main__":
    main()
