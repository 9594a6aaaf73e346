"""Mistakes with pairs, attribution, decomposition, lenses, dictionaries, probes and directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vlm_lens as v
from vlm_lens import Pair, Pairs
from vlm_lens.dictionaries import Dictionary
from vlm_lens.directions import Counterfactual, Direction, das
from vlm_lens.explorer import Explorer, explore
from vlm_lens.lenses import (
    Bank,
    JacobianLens,
    LatentLens,
    LogitLens,
    Patchscope,
    TowerLens,
    TunedLens,
    compare_lenses,
)
from vlm_lens.probes import probe
from vlm_lens.recipes import CausalTracing, CircuitFaithfulness, CrossModalPatch, PairPatching

R = "blocks.1.hook_resid_post"
Z = "blocks.*.attn.hook_z"


def cases(vlm: Any, folder: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    """Name -> a mistake, and words that the answer holds."""
    one, two = (vlm.prompt("Q:<image>\nA:", Image.new("RGB", (40, 30), c)) for c in ("red", "blue"))
    text, both = vlm.prompt("Q:Greece\nA:"), vlm.prompt(["Q:Greece\nA:", "Q:Peru\nA:"])
    pair = Pair(one, two, "Paris", "Lima")
    swapped = [Counterfactual("Q:Greece\nA:", "Q:Peru\nA:", "Lima")] * 4

    def patch(points: Any = R, **options: Any) -> Any:
        return pair.patch(vlm, points, **options)

    def attribute(points: Any = Z, **options: Any) -> Any:
        return pair.attribute(vlm, points, **options)

    def inputs(prompt: Any = one, **options: Any) -> Any:
        return vlm.attribute(prompt, **{"answer": "Paris", **options})

    def parts(**options: Any) -> Any:
        return vlm.decompose(one, **{"token": "Paris", **options})

    def train(**options: Any) -> Any:
        return Dictionary.train(vlm, ["Q:Greece\nA:"], R, **options)

    return {
        # ---------------------------------------------------------------- pairs
        "a text in a pair": (lambda: Pair("Q:", one, "a", "b"), "vlm.prompt(text, images)"),
        "a batch in a pair": (lambda: Pair(both, both, "a", "b"), "one Pair a row"),
        "equal answers": (lambda: Pair(one, two, "Paris", "Paris"), "nothing tells them apart"),
        "a pair without an answer": (lambda: Pair(one, two), "required argument: 'answer'"),
        "a picture and none": (lambda: Pair(one, text, "a", "b"), "equally many pictures"),
        "equal prompts": (lambda: Pair(one, one, "a", "b").changed, "equal at every position"),
        "an empty answer of a pair": (lambda: Pair(one, two, "", "b").check(vlm), "no answer"),
        "a pair's misspelt points": (lambda: patch("blocks.*.hook_resid_pst"), "Did you mean"),
        "a pair's heads of a stream": (lambda: patch(heads="each"), "no axis of heads"),
        "a pair's heads in words": (lambda: patch(Z, heads="every"), "'each', numbers, or None"),
        "a name for a pair's model": (lambda: pair.patch("toy-llava", R), "from_pretrained"),
        "a word for a pair's place": (lambda: patch(at="last"), "at is a position"),
        "a pair's measure": (lambda: patch(measure="top9"), "no measure 'top9'"),
        "a pair's misspelt keyword": (lambda: patch(meassure="top1"), "Did you mean 'measure'"),
        "no pairs": (lambda: Pairs([]), "no pairs"),
        "texts as pairs": (lambda: Pairs(["a", "b"]), "Pair(...)"),
        "a word as a seed of pairs": (lambda: Pairs([pair]).permuted("a"), "whole number"),
        "a negative seed of pairs": (lambda: Pairs([pair]).permuted(-1), "not negative"),
        "a pair's paths by place": (lambda: pair.patch_paths(vlm, Z, R, R), "It takes"),
        # ---------------------------------------------------------------- attribution
        "attribution to misspelt points": (lambda: attribute("blocks.*.hok_z"), "Did you mean"),
        "another attribution": (lambda: attribute(method="lime"), "'gradient' or 'ig'"),
        "attribution in no steps": (lambda: attribute(method="ig", steps=0), "at least 1"),
        "attribution in half steps": (lambda: attribute(method="ig", steps=1.5), "whole number"),
        "edges another way": (lambda: pair.edges(vlm, method="x"), "'gradient' or 'ig'"),
        "attribution to nothing known": (lambda: inputs(to="pixles"), "no point 'pixles'"),
        "another way to patches": (lambda: inputs(method="lime"), "one of 'gradient', 'ig'"),
        "another baseline": (lambda: inputs(baseline="grey"), "one of 'mean', 'zero'"),
        "of what else": (lambda: inputs(of="odds"), "one of 'logit', 'logprob'"),
        "negative steps": (lambda: inputs(method="ig", steps=-3), "at least 1"),
        "an empty answer's patches": (lambda: inputs(answer=""), "no answer"),
        "pixels of a text": (lambda: inputs(text, to="pixels"), "no picture"),
        "a batch's patches": (lambda: inputs(both), "One prompt"),
        # ---------------------------------------------------------------- decomposition
        "parts of another kind": (lambda: parts(by="comp"), "'component', 'source'"),
        "a token and a direction": (lambda: parts(direction=torch.ones(3)), "Give one of"),
        "a direction of another width": (
            lambda: parts(token=None, direction=torch.ones(3)), "not [3]"),
        "another part of the model": (lambda: parts(part="tower"), "'language', 'vision'"),
        "parts at a block beyond": (lambda: parts(layer=99), "blocks are 0 to 7"),
        "parts of a token beyond": (lambda: parts(token=10**7), "no token of this model"),
        "parts at a word": (lambda: parts(at="last"), "is not a position"),
        "parts at a place beyond": (lambda: parts(at=999), "not in this prompt"),
        # ---------------------------------------------------------------- lenses
        "a lens's place in words": (lambda: LogitLens(at="last").run(vlm, one), "not a position"),
        "a lens of misspelt points": (
            lambda: LogitLens(points="blocks.*.hok").run(vlm, one), "Did you mean"),
        "a lens's misspelt field": (lambda: LogitLens(points=R, kk=3), "takes no kk"),
        "a tuned lens of no prompts": (lambda: TunedLens.fit(vlm, []), "0 was given"),
        "a tuned lens of numbers": (lambda: TunedLens.fit(vlm, [1, 2]), "a text or a list"),
        "a tuned lens's kinds": (
            lambda: TunedLens.fit(vlm, ["Q:Greece"] * 4, kinds="both"), "'each' (by kind)"),
        "a tuned lens's misspelt keyword": (
            lambda: TunedLens.fit(vlm, ["Q:Greece"] * 4, epochs=0), "takes no epochs="),
        "a tuned lens of no model": (lambda: TunedLens.fit("toy", ["Q:"]), "from_pretrained"),
        "a Jacobian lens of no prompts": (lambda: JacobianLens.fit(vlm, []), "at least one"),
        "a Jacobian lens in no batches": (
            lambda: JacobianLens.fit(vlm, ["Q:Greece"], batch_size=0), "at least 1"),
        "a lens that is not there": (lambda: TunedLens.load(folder / "gone"), "no file"),
        "a bank without a folder": (lambda: Bank.build(vlm, ["a cat"]), "required argument"),
        "a latent lens without a bank": (lambda: LatentLens(), "required argument: 'bank'"),
        "a patchscope without its place": (
            lambda: Patchscope(target="").run(vlm, one), "does not occur"),
        "a tower's lens of nothing": (lambda: TowerLens.from_pretrained(), "required argument"),
        "no lenses": (lambda: compare_lenses(vlm, one, []), "at least one lens"),
        "names for lenses": (lambda: compare_lenses(vlm, one, ["logit"]), "A lens is"),
        # ---------------------------------------------------------------- dictionaries
        "a dictionary that is not there": (
            lambda: Dictionary.from_pretrained(folder / "gone"), "not a shipped dictionary"),
        "a misspelt dictionary": (
            lambda: Dictionary.from_pretrained("toy-idefics2-patchs"), "Did you mean"),
        "a dictionary in another folder": (
            lambda: Dictionary.from_pretrained(folder), "no layout that is known"),
        "a dictionary of no prompts": (lambda: Dictionary.train(vlm, [], R), "at least one"),
        "a dictionary at a misspelt point": (
            lambda: Dictionary.train(vlm, ["Q:"], "blocks.1.x"), "Did you mean"),
        "more at once than features": (lambda: train(n_features=4, k=9), "more than the 4"),
        "fewer than no features": (lambda: train(n_features=-4), "at least 1"),
        "a dictionary's misspelt keyword": (lambda: train(n_feature=4), "'n_features'"),
        # ---------------------------------------------------------------- probes and directions
        "a probe by place": (lambda: probe(vlm, "country-capital", R), "It takes"),
        "a probe of a misspelt task": (lambda: probe(vlm, "country-captial"), "Did you mean"),
        "a direction of nothing": (lambda: Direction.fit(vlm, [], []), "at least two positive"),
        "a direction another way": (
            lambda: Direction.fit(vlm, ["a", "b"], ["c", "d"], method="lda"), "one of mean"),
        "no counterfactuals": (lambda: das(vlm, [], R), "cannot be split"),
        "numbers as counterfactuals": (lambda: das(vlm, [1, 2], R), "Counterfactual(base"),
        "a subspace's misspelt keyword": (lambda: das(vlm, swapped, R, dims=9), "no dims="),
        "more directions than there are": (lambda: das(vlm, swapped, R, k=999), "k is between"),
        "a subspace of heads": (
            lambda: das(vlm, swapped, "blocks.1.attn.hook_z"), "no subspace [k, d]"),
        # ---------------------------------------------------------------- explorer and other tools
        "a name for the explorer's model": (lambda: explore("toy-lava"), "from_pretrained"),
        "the explorer of a misspelt task": (
            lambda: explore(vlm, tasks="country-captial"), "Did you mean"),
        "a number for the explorer's tasks": (lambda: explore(vlm, tasks=3), "names of tasks"),
        "the explorer as a text": (lambda: Explorer(()).save(folder / "x.txt"), ".html"),
        "a trace of a point beyond": (
            lambda: vlm.trace(one)["blocks.99.x"], "only while a block runs"),
        "a trace of a number": (lambda: vlm.trace(3).__enter__(), "a text or a list"),
        "a number for a bridge": (
            lambda: v.HookedVLM.from_bridge(3), "TransformerBridge.boot_transformers"),
        # ---------------------------------------------------------------- recipes
        "a recipe's misspelt field": (
            lambda: CrossModalPatch("country-capital", sorce="text"), "Did you mean 'source'"),
        "a recipe that has no such field": (
            lambda: CausalTracing(tasks="country-capital", noise=-1), "takes no noise="),
        "a number for a recipe's tasks": (lambda: PairPatching(tasks=3), "PairPatching.tasks"),
        "a circuit of a misspelt task": (
            lambda: CircuitFaithfulness(tasks="country-captial"), "Did you mean"),
        "a recipe of no model": (
            lambda: CrossModalPatch("country-capital").run("toy-llava"), "HookedVLM"),
    }  # fmt: skip
