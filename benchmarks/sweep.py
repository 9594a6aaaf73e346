"""What a sweep costs: replay against the paper's way, plain hooks, TransformerLens and nnsight.

Every way computes the same patches on one model in one process; each case prints medians, and
ratios to one plain forward and to replay. Run with `--device cuda --dtype bfloat16 --preset
llava-7b` on a GPU for the shape of LLaVA-1.5-7B.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vlm_lens import ActivationPatch, Find, HookedVLM, Last, Patches, TaskVector
from vlm_lens.sweep import Grid
from vlm_lens.tasks import Task

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from steps import Steps  # noqa: E402 (the tests count with it too)

IMAGE = 5
PRESETS = {
    # layers, width, mlp, heads; tower: layers, width
    "small": ((32, 256, 688, 8), (24, 64)),
    "narrow": ((32, 32, 64, 4), (2, 64)),  # so narrow that calls are what costs, as on a GPU
    "llava-7b": ((32, 4096, 11008, 32), (24, 1024)),
}


def build(preset: str, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A random LLaVA with 576 image tokens."""
    (layers, width, mlp, heads), (tower_layers, tower_width) = PRESETS[preset]
    vision = CLIPVisionConfig(
        hidden_size=tower_width, intermediate_size=4 * tower_width, image_size=336, patch_size=14,
        num_hidden_layers=tower_layers, num_attention_heads=max(1, tower_width // 64),
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    return model


def inputs_for(device: str, dtype: torch.dtype, n_images: int = 1, rows: int = 1) -> dict:
    """One prompt a row: pictures, then a few tokens."""
    ids = [1, 20, *([IMAGE] * 576 + [30]) * n_images, *range(31, 51)]
    return {
        "input_ids": torch.tensor([ids] * rows, device=device),
        "attention_mask": torch.ones(rows, len(ids), dtype=torch.long, device=device),
        "pixel_values": torch.randn(rows * n_images, 3, 336, 336, device=device, dtype=dtype),
    }


class Clock:
    """Times functions in turns, so that a noisy machine is noisy for all of them."""

    def __init__(self, device: str, runs: int, *, cpu_time: bool = False):
        self.device, self.runs = device, runs
        self.now = time.process_time if cpu_time else time.perf_counter

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._wait()
        start = self.now()
        run()
        self._wait()
        return self.now() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compare(self, ways: dict[str, Callable[[], object]], title: str, base: str) -> None:
        """Prints the median of each way and its ratio to `base` and to replay."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float] = {}
        for name, run in ways.items():
            if name in (base, "replay"):  # the others are long, and their first call is as any
                self.once(run)
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                self.once(run)
                peaks[name] = torch.cuda.max_memory_allocated() / 1e9
        for _ in range(self.runs):
            for name, run in ways.items():
                times[name].append(self.once(run))
        medians = {name: statistics.median(t) for name, t in times.items()}
        print(f"\n### {title}\n\n| way | seconds | times {base} | times replay | peak GB |")
        print("|---|---|---|---|---|")
        for name, seconds in medians.items():
            peak = f"{peaks[name]:.1f}" if name in peaks else ""
            print(
                f"| {name} | {seconds:.3f} | {seconds / medians[base]:.2f} | "
                f"{seconds / medians.get('replay', seconds):.2f} | {peak} |"
            )
        print(flush=True)


@contextmanager
def plain_hook(block, change: Callable):
    """A torch hook on a block, as one would write it by hand; before those of transformers."""
    handle = block.register_forward_hook(lambda module, args, out: change(out), prepend=True)
    try:
        yield
    finally:
        handle.remove()


def patched(positions, vector):
    """A function that replaces some positions of a tensor."""

    def change(x):
        x = x.clone()
        if x.shape[1] > max(positions):
            x[:, positions] = vector.to(x)
        return x

    return change


@torch.no_grad()
def last_token(vlm, inputs, vector, clock, others: bool) -> None:
    """(a) One vector at the last token, at every layer."""
    model, n, last = vlm.hf_model, vlm.cfg.n_layers, inputs["input_ids"].shape[1] - 1
    prompt = vlm.as_prompt(inputs)
    edit = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)

    def paper() -> None:
        for layer in range(n):
            with plain_hook(model.model.language_model.layers[layer], patched([last], vector)):
                model.generate(**inputs, max_new_tokens=1, do_sample=False, use_cache=False)

    def hooked() -> None:
        for layer in range(n):
            with plain_hook(model.model.language_model.layers[layer], patched([last], vector)):
                model(**inputs, use_cache=False)

    ways = {
        "one plain forward": lambda: model(**inputs, use_cache=False),
        "replay": lambda: vlm.sweep(prompt, edit.each_layer(), progress=False),
        "one hooked forward per layer": hooked,
        "the paper's way": paper,
    }
    if others:
        ways |= nnsight_way(model, inputs, vector, n, last)
        ways |= bridge_way(vlm, inputs, vector, n, last)
    clock.compare(ways, f"(a) last token, each of {n} layers", "one plain forward")


def nnsight_way(model, inputs, vector, n: int, last: int) -> dict:
    """One nnsight trace per layer."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def run() -> None:
        for layer in range(n):
            with torch.no_grad(), wrapped.trace(**inputs, use_cache=False):
                wrapped.model.language_model.layers[layer].output[:, last] = vector
                wrapped.lm_head.output.save()

    return {"nnsight, one trace per layer": run}


def bridge_way(vlm, inputs, vector, n: int, last: int) -> dict:
    """One `run_with_hooks` of TransformerLens's bridge per layer, on a copy of the model."""
    bridge = vlm.to_bridge()

    def change(x, hook):
        x = x.clone()
        x[:, last] = vector.to(x)
        return x

    def run() -> None:
        with torch.no_grad():
            for layer in range(n):
                bridge.run_with_hooks(
                    inputs["input_ids"], pixel_values=inputs["pixel_values"],
                    fwd_hooks=[(f"blocks.{layer}.hook_out", change)],
                )  # fmt: skip

    return {"TransformerBridge, one run per layer": run}


@torch.no_grad()
def positions(vlm, inputs, vector, clock, sample: int) -> None:
    """(b) Layers by the last 16 positions; the hooked way is timed on a sample and scaled."""
    prompt, n = vlm.as_prompt(inputs), vlm.cfg.n_layers
    length = prompt.length
    grid = Grid("blocks.*.hook_resid_post", at=list(range(length - 16, length)), vectors=vector)
    _grid_case(vlm, inputs, vector, clock, grid, [[length - 8]], n * 16, sample,
               f"(b) {n} layers x last 16 positions")  # fmt: skip


@torch.no_grad()
def block(vlm, inputs, vector, clock, sample: int) -> None:
    """(c) Layers by a block of 4 x 4 patches in the middle of the picture."""
    prompt, n = vlm.as_prompt(inputs), vlm.cfg.n_layers
    at = Patches(0, rows=(10, 14), cols=(10, 14))
    places = [p for _, p in at.resolve(prompt.layout)]
    grid = Grid("blocks.*.hook_resid_post", at=at, vectors=vector)
    _grid_case(vlm, inputs, vector, clock, grid, [places], n, sample,
               f"(c) {n} layers x a 4 x 4 block of patches")  # fmt: skip


def _grid_case(vlm, inputs, vector, clock, grid, places, count, sample, title, blocks=None) -> None:
    model = vlm.hf_model
    blocks = model.model.language_model.layers if blocks is None else blocks
    n = min(len(blocks), count)
    prompt = vlm.as_prompt(inputs)
    layers = [i * n // sample for i in range(sample)]

    def hooked() -> None:
        for layer in layers:
            with plain_hook(blocks[layer], patched(places[0], vector)):
                model(**inputs, use_cache=False)

    seconds = {"hooked": [], "replay": [], "plain": []}
    vlm.sweep(prompt, grid, progress=False)
    for _ in range(clock.runs):
        seconds["plain"].append(clock.once(lambda: model(**inputs, use_cache=False)))
        seconds["replay"].append(clock.once(lambda: vlm.sweep(prompt, grid, progress=False)))
        seconds["hooked"].append(clock.once(hooked) * count / sample)
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    print(f"\n### {title} ({count} variants)\n\n| way | seconds | times replay |\n|---|---|---|")
    labels = {
        "plain": "one plain forward",
        "replay": "replay",
        "hooked": f"one hooked forward per variant (from {sample} of them)",
    }
    for name, label in labels.items():
        print(f"| {label} | {medians[name]:.3f} | {medians[name] / medians['replay']:.2f} |")
    print(flush=True)


@torch.no_grad()
def tower(vlm, inputs, vector, clock, sample: int) -> None:
    """(t) One vector at a row of patches, at every block of the tower that is read."""
    model, n = vlm.hf_model, vlm.cfg.vision.n_layers_read
    prompt = vlm.as_prompt(inputs)
    value = torch.randn(vlm.cfg.vision.d_model).to(vector)
    blocks = model.model.vision_tower.get_submodule(
        vlm.points()["vision.blocks.0.hook_resid_post"].site.module.rpartition(".")[0].split(
            "vision_tower."
        )[1]
    )  # fmt: skip
    grid = Grid("vision.blocks.*.hook_resid_post", at=Patches(0, rows=10), vectors=value,
                layers=range(n))  # fmt: skip
    places = [p for _, p in Patches(0, rows=10).resolve(prompt.layout, "vision")]
    _grid_case(vlm, inputs, value, clock, grid, [places], n, sample,
               f"(t) {n} tower blocks x a row of patches", blocks)  # fmt: skip


@torch.no_grad()
def vectors(vlm, clock, device: str, dtype: torch.dtype, count: int) -> None:
    """(e) A vector from image prompts with five examples: together, and one at a time.

    The prompts show six pictures each, drawn from forty: of a task's pictures, several prompts show
    the same ones.
    """
    pool = torch.randn(40, 3, 336, 336).to(device, dtype)
    batches = []
    for seed in range(count):
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:6]
        inputs = inputs_for(device, dtype, n_images=6)
        batches.append(vlm.as_prompt(inputs | {"pixel_values": pool[drawn.to(device)]}))
    _vector_case(vlm, batches, Last(), clock, f"(e) vector from {count} five-shot image prompts")


@torch.no_grad()
def real_vectors(clock, device: str) -> None:
    """(e) The same with the model that ships and the thirty image prompts of a task."""
    vlm = HookedVLM.from_pretrained("toy-llava", device=device)
    prompts = Task.load("country-capital").example_sets("image", seed=1)
    title = f"(e) toy-llava, vector from {len(prompts)} five-shot image prompts"
    _vector_case(vlm, prompts, Find(":", -3), clock, title)


def _vector_case(vlm, prompts, at, clock, title: str) -> None:
    names = vlm.points().match("blocks.*.hook_resid_post")

    def alone() -> None:
        for prompt in prompts:
            vlm.run_with_cache(prompt, names_filter=names, positions=at)

    ways = {
        "one at a time": alone,
        "replay": lambda: TaskVector.read(vlm, prompts, at=at),
    }
    clock.compare(ways, f"{title} (replay = TaskVector.read)", "one at a time")


@torch.no_grad()
def calls(vlm, inputs, vector, clock) -> None:
    """(o) What each of many small steps costs beside the arithmetic: time, steps, waits."""
    model, n = vlm.hf_model, vlm.cfg.n_layers
    ids = torch.arange(30, 54, device=inputs["input_ids"].device)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    edit = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)
    sweep = partial(vlm.sweep, variants=edit.each_layer(), measure="logits", progress=False)
    for what, given in (("576 image tokens", inputs), ("24 tokens of text", text)):
        prompt = vlm.as_prompt(given)
        ways = {
            "one plain forward": lambda given=given: model(**given, use_cache=False),
            "in the run itself": partial(sweep, prompt),
            "as rows of a batch": partial(sweep, prompt, memory=256 << 20),
        }
        clock.compare(ways, f"(o) last token, each of {n} layers, {what}", "one plain forward")
        print("| way | steps (kernels on a GPU) | waits for the device |\n|---|---|---|")
        for name, run in ways.items():
            with Steps() as steps:
                run()
            print(f"| {name} | {steps.computed} | {steps.waits} |")
        if clock.device == "cuda":
            print("\n| way | launches | synchronisations | copies |\n|---|---|---|---|")
            for name, run in ways.items():
                print(f"| {name} | {' | '.join(map(str, launches(run)))} |")
        print(flush=True)


def launches(run: Callable[[], object]) -> list[int]:
    """Kernels launched, synchronisations of the host and copies, as CUDA's runtime counts them."""
    calls = ("LaunchKernel", "Synchronize", "Memcpy")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    names = [event.key for event in profile.events() if event.key.startswith("cu")]
    # the profiler itself synchronises once, when it stops
    return [sum(call in name for name in names) for call in calls]


def memory(vlm, inputs, vector, many: int) -> None:
    """(g) Peak memory of 100 and of many variants."""
    prompt = vlm.as_prompt(inputs)
    print("\n### (g) peak resident memory\n\n| variants | GB |\n|---|---|")
    for count in (100, many):
        edits = [
            ActivationPatch(f"blocks.{i % vlm.cfg.n_layers}.hook_resid_post", Last(), vector)
            for i in range(count)
        ]
        vlm.sweep(prompt, edits, progress=False)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"| {count} | {peak:.2f} |", flush=True)


def main() -> None:
    """Runs the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="abcetg")
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is not idle")
    parser.add_argument("--sample", type=int, default=4)
    parser.add_argument("--many", type=int, default=10_000, help="variants of case (g)")
    parser.add_argument("--prompts", type=int, default=30, help="of case (e)")
    parser.add_argument("--no-others", action="store_true", help="without TransformerLens, nnsight")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    vlm = HookedVLM(build(args.preset, args.device, dtype))
    inputs = inputs_for(args.device, dtype)
    vector = torch.randn(vlm.cfg.d_model, device=args.device, dtype=dtype)
    clock = Clock(args.device, args.runs, cpu_time=args.cpu_time)
    print(f"{args.preset}, {args.device}, {args.dtype}, {args.threads} threads, {args.runs} runs, "
          f"torch {torch.__version__}, {platform.processor() or platform.machine()}")  # fmt: skip
    if "g" in args.cases:
        memory(vlm, inputs, vector, args.many)
    if "a" in args.cases:
        last_token(vlm, inputs, vector, clock, not args.no_others)
    if "b" in args.cases:
        positions(vlm, inputs, vector, clock, args.sample)
    if "c" in args.cases:
        block(vlm, inputs, vector, clock, args.sample)
    if "t" in args.cases:
        tower(vlm, inputs, vector, clock, args.sample)
    if "o" in args.cases:
        calls(vlm, inputs, vector, clock)
    if "e" in args.cases:
        real_vectors(clock, args.device)
        vectors(vlm, clock, args.device, dtype, args.prompts)


if __name__ == "__main__":
    main()
