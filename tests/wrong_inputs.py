"""Mistakes a user makes, and what each is told: run as a program, without the tests' type checks.

`python tests/wrong_inputs.py` prints one JSON line a case: its name, the error's class and message,
and whether the model was run before it was raised.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wrong_inputs_methods
from PIL import Image

import vlm_lens as v
from vlm_lens.attention import attention_rollout, entropy
from vlm_lens.recipes import CrossModalPatch, InformationFlow, Result
from vlm_lens.tasks import Task

R = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"


def cases(vlm: Any, folder: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    """Name -> a mistake, and words that the answer holds."""
    picture = Image.new("RGB", (40, 30), "red")
    one = vlm.prompt("Q:<image>\nA:", picture)
    text = vlm.prompt("Q:Greece\nA:")
    ids = text.inputs["input_ids"]
    width = vlm.cfg.d_model
    _, cache = vlm.run_with_cache(text, names_filter=R)
    vector = torch.ones(width)
    (folder / "notes.txt").write_text("no picture")
    (folder / "rows.csv").write_text("input,output\na,b\n")
    (folder / "other.csv").write_text("name,label\na,b\n")
    bare = v.HookedVLM(vlm.hf_model)
    both = vlm.prompt(["<image>", "<image>"], [[picture], [picture]])
    look, of_text = vlm.attention(one), vlm.attention(text)
    task = Task.load("country-capital")
    mean = v.Mean.of(vlm, ["Q:"], R)

    def patch(**options: Any) -> v.ActivationPatch:
        given = {"point": R, "at": v.Last(), "value": vector} | options
        return v.ActivationPatch(given.pop("point"), **given)

    def table(name: str, **options: Any) -> Task:
        return Task.from_csv(folder / name, instruction="x:", **options)

    def swept(measure: Any = "top1", **options: Any) -> Any:
        return vlm.sweep(text, [v.Ablate(R, v.Last())], measure=measure, progress=False, **options)

    def cut(queries: Any = None, keys: Any = None, **options: Any) -> v.AttentionKnockout:
        return v.AttentionKnockout(
            v.Last() if queries is None else queries, v.Images() if keys is None else keys,
            **options,
        )  # fmt: skip

    def message(*content: Any) -> list[dict]:
        return [{"role": "user", "content": list(content)}]

    return {
        # ---------------------------------------------------------------- models
        "a name for a model": (lambda: v.HookedVLM("toy-llava"), "from_pretrained"),
        "a class for a model": (lambda: v.HookedVLM(type(vlm.hf_model)), "is a class"),
        "a tokenizer for a model": (lambda: v.HookedVLM(vlm.tokenizer), "transformers model"),
        "a plain module": (lambda: v.HookedVLM(torch.nn.Linear(2, 2)), "no config"),
        "a base model without a head": (lambda: v.HookedVLM(vlm.hf_model.model), "output layer"),
        "a name for a processor": (lambda: v.HookedVLM(vlm.hf_model, "toy"), "AutoProcessor"),
        "a model for a processor": (
            lambda: v.HookedVLM(vlm.hf_model, vlm.hf_model), "AutoProcessor"),
        "pictures' processor alone": (
            lambda: v.HookedVLM(vlm.hf_model, vlm.processor.image_processor), "no text"),
        "a misspelt model": (lambda: v.HookedVLM.from_pretrained("toy-lava"), "Did you mean"),
        "an empty folder": (lambda: v.HookedVLM.from_pretrained(folder), "config.json"),
        "device and device_map": (
            lambda: v.HookedVLM.from_pretrained("toy-llava", device="cpu", device_map="auto"),
            "not both"),
        "torch_dtype": (
            lambda: v.HookedVLM.from_pretrained("toy-llava", torch_dtype="auto"), "dtype="),
        "fold_ln": (lambda: v.HookedVLM.from_pretrained("toy-llava", fold_ln=True), "fold_ln"),
        "a dtype that there is not": (
            lambda: v.HookedVLM.from_pretrained("toy-llava", dtype="float17"), "dtype"),
        "a device that there is not": (
            lambda: v.HookedVLM.from_pretrained("toy-llava", device="gpu"), "device"),
        # ---------------------------------------------------------------- prompts
        "a number for a text": (lambda: vlm.prompt(3), "a text or a list of texts"),
        "None for a text": (lambda: vlm.run(None), "a text or a list of texts"),
        "no text": (lambda: vlm.prompt([]), "a text or a list of texts"),
        "a tensor for a prompt": (lambda: vlm.run(ids), "processor's output"),
        "no picture": (lambda: vlm.prompt("<image>"), "0 pictures were given"),
        "no placeholder": (lambda: vlm.prompt("Q:", picture), "write one <image>"),
        "pictures in wrong lists": (
            lambda: vlm.prompt(["<image>", "<image>"], [[picture]]), "one list a text"),
        "an array for a picture": (
            lambda: vlm.prompt("<image>", np.zeros((4, 4, 3))), "fromarray"),
        "a tensor for a picture": (
            lambda: vlm.prompt("<image>", torch.zeros(3, 4, 4)), "fromarray"),
        "a URL for a picture": (lambda: vlm.prompt("<image>", "https://a.org/x.png"), "download"),
        "a path that is not there": (lambda: vlm.prompt("<image>", "gone.png"), "no such file"),
        "a file that is no picture": (
            lambda: vlm.prompt("<image>", folder / "notes.txt"), "cannot be read as a picture"),
        "a folder for a picture": (lambda: vlm.prompt("<image>", folder), "cannot be read"),
        "bytes for a picture": (lambda: vlm.prompt("<image>", b"123"), "PIL"),
        "a number for pictures": (lambda: vlm.prompt("<image>", 3), "PIL"),
        "pictures with a Prompt": (lambda: vlm.run(one, picture), "leave images= out"),
        "pictures with a RawPrompt": (
            lambda: vlm.prompt(v.RawPrompt("<image>", picture), picture), "leave images= out"),
        "a RawPrompt of two texts": (lambda: v.RawPrompt(["a", "b"]), "one RawPrompt"),
        "a RawPrompt without its picture": (lambda: v.RawPrompt("<image>"), "one '<image>'"),
        "no input_ids": (lambda: vlm.run({"tokens": ids}), "input_ids"),
        "ids of one axis": (lambda: vlm.run({"input_ids": ids[0]}), "[batch, pos]"),
        "ids that are no integers": (lambda: vlm.run({"input_ids": ids.float()}), "integers"),
        "a negative id": (lambda: vlm.run({"input_ids": ids * 0 - 1}), "vocabulary"),
        "an id beyond the vocabulary": (lambda: vlm.run({"input_ids": ids + 10**6}), "vocabulary"),
        "ragged ids": (lambda: vlm.run({"input_ids": [[1, 2], [3]]}), "return_tensors"),
        "a mask of another shape": (
            lambda: vlm.run({"input_ids": ids, "attention_mask": ids[:, 1:]}), "attention_mask"),
        "a mask of zeros": (
            lambda: vlm.run({"input_ids": ids, "attention_mask": ids * 0}), "all zeros"),
        "image tokens without pixels": (
            lambda: vlm.run({"input_ids": one.inputs["input_ids"]}), "pixel"),
        "pixels without image tokens": (
            lambda: vlm.run({**one.inputs, "input_ids": ids, "attention_mask": ids * 0 + 1}),
            "image"),
        "no tokens": (lambda: vlm.run({"input_ids": ids[:, :0]}), "[batch, pos]"),
        "text without a processor": (
            lambda: bare.prompt("Q:"), "no processor"),
        "a batch's only layout": (lambda: vlm.prompt(["a", "b"]).layout, "layouts[row]"),
        # ---------------------------------------------------------------- chat
        "a text for a chat": (lambda: vlm.chat("Q:"), "chat"),
        "a chat without a template": (lambda: vlm.chat(message()), "chat template"),
        "a message without a role": (
            lambda: vlm.chat([{"content": "Q"}], chat_template="x"), "role"),
        "a picture by URL": (
            lambda: vlm.chat(message({"type": "image", "url": "https://a.org"}),
                             chat_template="x"), "download"),
        "a film": (
            lambda: vlm.chat(message({"type": "video"}), chat_template="x"), "videos=[frames]"),
        "an option of no template": (
            lambda: vlm.chat(message(), chat_template="x", thinking=True), "reads no option"),
        "a template that fails": (
            lambda: vlm.chat(message(), chat_template="{{ nothing.at.all }}"), "refuses"),
        # ---------------------------------------------------------------- points
        "a misspelt point": (lambda: vlm.points("blocks.1.hook_residpost"), "Did you mean"),
        "a misspelt glob": (lambda: vlm.points("blocks.*.hook_residpost"), "Did you mean"),
        "a block that there is not": (lambda: vlm.points("blocks.99.hook_resid_post"), "99"),
        "a tower's block that there is not": (
            lambda: vlm.points("vision.blocks.99.hook_resid_post"), "99"),
        "braces that count down": (lambda: vlm.points("blocks.{2..1}.hook_mlp_out"), "{1..2}"),
        "braces left open": (lambda: vlm.points("blocks.{1.hook_mlp_out"), "blocks.{1"),
        "an empty list of points": (lambda: vlm.points([]), "empty list"),
        "a number for a point": (lambda: vlm.points(3), "A point is a name"),
        "a list of numbers for points": (lambda: vlm.points([1, 2]), "A point is a name"),
        "a function that selects nothing": (lambda: vlm.points(lambda name: False), "none"),
        "a short form of four": (lambda: vlm.points()["q", 1, "a", "b"], "short name, layer"),
        "an empty filter": (lambda: vlm.run_with_cache(text, names_filter=[]), "empty list"),
        "a number for a filter": (lambda: vlm.run_with_cache(text, names_filter=3), "not 3"),
        "a number of points": (lambda: vlm.points()[3], "not a point"),
        "a number of a cache": (lambda: cache[3], "not a point"),
        "nothing of a cache": (lambda: cache[None], "not a point"),
        "a stack of a number": (lambda: cache.stack(3), "not a point"),
        "a place in a number": (lambda: cache.select(3, v.Last()), "not a point"),
        "a point that is a number": (lambda: v.Ablate(3, v.Last()), "not a point"),
        "a point itself": (lambda: v.Ablate(vlm.points()[R], v.Last()), "not a point"),
        "a misspelt filter": (lambda: vlm.run_with_cache(text, names_filter="nope"), "nope"),
        "the tower without pictures": (
            lambda: vlm.run_with_cache(text, names_filter="vision.hook_out"), "none"),
        "a filter without pictures": (
            lambda: vlm.run_with_cache(text, names_filter="vision.*"), "pictures"),
        # ---------------------------------------------------------------- what was read
        "what was not read": (lambda: cache["blocks.0.hook_resid_post"], "names_filter"),
        "what there is not": (lambda: cache["nothing"], "There is no point"),
        "a stack of what was not read": (lambda: cache.stack("z"), "was read"),
        "a place in what was not read": (lambda: cache.select(Z, v.Last()), "names_filter"),
        "no last logits": (lambda: vlm.run_with_cache(text, last_logits=0), "at least 1"),
        "half a last logit": (lambda: vlm.run_with_cache(text, last_logits=1.5), "whole number"),
        "a place that there is not": (
            lambda: vlm.run_with_cache(text, positions=999), "not in this prompt"),
        "a word for a place": (lambda: vlm.run_with_cache(text, positions="last"), "Last()"),
        # ---------------------------------------------------------------- places
        "a word that is not there": (lambda: text.layout.find("France"), "does not occur"),
        "an occurrence that is not there": (lambda: text.layout.find(":", 9), "occurs"),
        "an empty word": (lambda: text.layout.find(""), "empty"),
        "None as a word": (lambda: text.layout.find(None), "a text or a token's id"),
        "None as a place's word": (lambda: v.Find(None), "whole number"),
        "half an occurrence": (lambda: v.Find(":", 0.5), "whole number"),
        "half a position": (lambda: v.At(1.5), "whole number"),
        "a word as a position": (lambda: v.At("last"), "whole number"),
        "a position twice": (lambda: v.At((1, 1)), "twice"),
        "a number as a span": (lambda: v.Span(3), "stretch of text"),
        "a span that is not there": (lambda: text.layout.span("France"), "does not occur"),
        "a span that is there twice": (
            lambda: vlm.prompt("Q:a\nA:b\n\nQ:a\nA:").layout.span("Q:"), "say which"),
        "rows as a list": (lambda: v.Patches(0, rows=[0, 2]), "(start, stop)"),
        "rows the wrong way round": (
            lambda: v.Patches(0, rows=(2, 1)).resolve(one.layout), "start < stop"),
        "rows and a box": (lambda: v.Patches(0, rows=1, box=(0, 0, 1, 1)), "only one"),
        "a box of three": (lambda: v.Patches(0, box=(0, 0, 1)), "(x0, y0, x1, y1)"),
        "a box without area": (lambda: v.Patches(0, box=(5, 5, 5, 9)), "x0 < x1"),
        "a box outside": (
            lambda: v.Patches(0, box=(900, 900, 950, 950)).resolve(one.layout), "picture"),
        "a patch that there is not": (
            lambda: v.Patches(0, rows=99, cols=0).resolve(one.layout), "no patch 99"),
        "a picture that there is not": (lambda: v.Patches(3).resolve(one.layout), "1 picture"),
        "pictures of a text": (lambda: v.Images().resolve(text.layout), "no picture"),
        "the last place of the tower": (
            lambda: v.Last().resolve(one.layout, "vision"), "place in the text"),
        "a picture of a text": (lambda: text.layout.image[0], "no picture"),
        # ---------------------------------------------------------------- interventions
        "a function as an intervention": (
            lambda: vlm.run(text, interventions=lambda x: x), "interventions="),
        "a list of names as interventions": (
            lambda: vlm.run(text, interventions=["steer"]), "ActivationPatch"),
        "a number as an intervention": (lambda: vlm.run(text, interventions=3), "interventions="),
        "no point": (lambda: v.Ablate([], at=v.Last()), "No point was given"),
        "an ablation that there is not": (
            lambda: v.Ablate(R, at=v.Last(), by="nothing"), "zero"),
        "a patch at a misspelt point": (
            lambda: vlm.run(text, interventions=patch(point="blocks.1.hook_rsid_post")),
            "Did you mean"),
        "a patch of another width": (
            lambda: vlm.run(text, interventions=patch(value=torch.ones(width + 1))),
            "does not fit"),
        "a patch of NaN": (
            lambda: vlm.run(text, interventions=patch(value=vector * float("nan"))), "NaN"),
        "a word as a value": (lambda: patch(value="vector"), "not str"),
        "a cache of another point": (
            lambda: vlm.run(text, interventions=v.ActivationPatch(
                "blocks.0.hook_resid_post", at=v.Last(), value=cache)), "holds none"),
        "heads where there are none": (
            lambda: vlm.run(text, interventions=v.Ablate(R, at=v.Last(), heads=0)), "heads"),
        "a head that there is not": (
            lambda: vlm.run(text, interventions=v.Ablate(Z, at=v.Last(), heads=99)), "99"),
        "half a head": (lambda: v.Ablate(Z, at=v.Last(), heads=0.5), "whole number"),
        "patches of a text": (
            lambda: vlm.run(text, interventions=v.Ablate(R, at=v.Patches(0))), "no picture"),
        "the tower of a text": (
            lambda: vlm.run(text, interventions=v.Ablate("projector.hook_out", at=v.Images())),
            "picture"),
        "generated tokens in a run": (
            lambda: vlm.run(text, interventions=v.Steer(R, at=v.Generated(), vector=1.0)),
            "generate"),
        "a word as a place": (lambda: v.Ablate(R, at="last"), "is not a position"),
        "a misspelt layer of a vector": (
            lambda: vlm.run(text, interventions=v.Ablate("blocks.99.hook_z", at=v.Last())), "99"),
        # ---------------------------------------------------------------- functions
        "a hook that is no pair": (
            lambda: vlm.run_with_hooks(text, fwd_hooks=[R]), "(name, function)"),
        "a hook without a function": (
            lambda: vlm.run_with_hooks(text, fwd_hooks=[(R, None)]), "(name, function)"),
        "hooks that are no list": (
            lambda: vlm.run_with_hooks(text, fwd_hooks=print), "(name, function)"),
        "a hook at a misspelt point": (
            lambda: vlm.run_with_hooks(text, fwd_hooks=[("nope", print)]), "nope"),
        "a hook on the tower of a text": (
            lambda: vlm.run_with_hooks(text, fwd_hooks=[("vision.hook_out", print)]), "picture"),
        # ---------------------------------------------------------------- generation
        "no new tokens": (lambda: vlm.generate(text, max_new_tokens=0), "at least 1"),
        "half a new token": (lambda: vlm.generate(text, max_new_tokens=1.5), "whole number"),
        "a misspelt option": (lambda: vlm.generate(text, temprature=1.0), "Did you mean"),
        "max_length": (lambda: vlm.generate(text, max_length=9), "max_new_tokens"),
        "a negative temperature": (
            lambda: vlm.generate(text, do_sample=True, temperature=-1.0), "positive"),
        "no beams": (lambda: vlm.generate(text, num_beams=0), "positive"),
        "several samples of a greedy run": (
            lambda: vlm.generate(text, num_return_sequences=2), "refuses"),
        "beams and a patch": (
            lambda: vlm.generate(text, num_beams=2, interventions=patch()), "num_beams"),
        "attentions of a generation": (
            lambda: vlm.generate(text, output_attentions=True), "ignored"),
        "ids as an option": (lambda: vlm.generate(text, input_ids=ids), "part of the prompt"),
        "a dictionary as a configuration": (
            lambda: vlm.generate(text, generation_config={"num_beams": 1}), "GenerationConfig"),
        # ---------------------------------------------------------------- TransformerLens's
        "pos_slice": (lambda: vlm.run_with_cache(text, pos_slice=-1), "positions"),
        "stop_at_layer": (lambda: vlm.run(text, stop_at_layer=1), "names_filter"),
        "return_type": (lambda: vlm.run(text, return_type="loss"), "logits"),
        "remove_batch_dim": (lambda: vlm.run_with_cache(text, remove_batch_dim=True), "[0]"),
        "bwd_hooks": (lambda: vlm.run_with_hooks(text, bwd_hooks=[]), "grad=True"),
        "incl_bwd": (lambda: vlm.run_with_cache(text, incl_bwd=True), "grad=True"),
        "prepend_bos": (lambda: vlm.prompt("Q:", prepend_bos=False), "add_special_tokens"),
        "add_hook": (lambda: vlm.add_hook(R, print), "run_with_hooks"),
        "reset_hooks": (lambda: vlm.reset_hooks(), "nothing to reset"),
        "W_in": (lambda: vlm.W_in, "named_parameters"),
        "eval": (lambda: vlm.eval(), "vlm.hf_model.eval"),
        "a misspelt method": (lambda: vlm.run_with_cach(text), "Did you mean"),
        "a misspelt keyword": (lambda: vlm.run(text, intervention=[]), "Did you mean"),
        # ---------------------------------------------------------------- words and tokens
        "two tokens as one": (lambda: vlm.to_single_token("Greece and Peru"), "not one"),
        "nothing as a token": (lambda: vlm.to_first_token(""), "gives no token"),
        "a negative token": (lambda: vlm.to_token_id(-1), "ids of this model"),
        "half a token": (lambda: vlm.to_token_id(0.5), "whole number"),
        "a misspelt name of the package": (lambda: v.HookedVLN, "Did you mean 'HookedVLM'"),
        # ---------------------------------------------------------------- sweeps and lenses
        "a measure that there is not": (
            lambda: vlm.sweep(text, [patch()], measure="nope", progress=False), "measure"),
        "a number as a measure": (
            lambda: vlm.sweep(text, [patch()], measure=3.5, progress=False), "measure"),
        "an engine that there is not": (
            lambda: vlm.sweep(text, [patch()], engine="fast", progress=False), "engine"),
        "variants that are none": (lambda: vlm.sweep(text, [3], progress=False), ""),
        "a variant that does not fit": (
            lambda: vlm.sweep(text, [v.Ablate("nope", at=v.Last())], progress=False), "nope"),
        "a lens on the tower": (
            lambda: v.LogitLens("vision.blocks.*.hook_resid_post").run(vlm, one), "residual"),
        "a lens at a place that is not there": (
            lambda: v.LogitLens(at=v.Images()).run(vlm, text), "picture"),
        "a lens on a token that there is not": (
            lambda: v.LogitLens(tokens=-1).run(vlm, text), "ids of this model"),
        "a lens of no tokens": (lambda: v.LogitLens(k=0).run(vlm, text), "k"),
        # ---------------------------------------------------------------- other changes
        "a factor of infinity": (
            lambda: vlm.run(text, interventions=v.Scale(R, v.Last(), float("inf"))), "infinity"),
        "a factor of NaN": (
            lambda: vlm.run(text, interventions=v.Scale(R, v.Last(), float("nan"))), "NaN"),
        "a factor of another width": (
            lambda: vlm.run(text, interventions=v.Scale(R, v.Last(), torch.ones(width + 1))),
            "does not fit"),
        "a word as a factor": (lambda: v.Scale(R, v.Last(), "2"), "not str"),
        "an array as a factor": (lambda: v.Scale(R, v.Last(), np.ones(width)), "not ndarray"),
        "a clamp without limits": (lambda: v.Clamp(R, v.Last()), "low=, high= or both"),
        "a clamp the wrong way round": (lambda: v.Clamp(R, v.Last(), 2, 1), "low <= high"),
        "a word as a limit": (lambda: v.Clamp(R, v.Last(), low="a"), "is a number"),
        "a tensor as a limit": (lambda: v.Clamp(R, v.Last(), low=vector), "is a number"),
        "NaN as a limit": (lambda: v.Clamp(R, v.Last(), low=float("nan")), "low <= high"),
        "directions of zero": (
            lambda: vlm.run(text, interventions=v.Remove(R, v.Last(), vector * 0)), "are zero"),
        "directions of another width": (
            lambda: vlm.run(text, interventions=v.Project(R, v.Last(), vector[1:])), "do not fit"),
        "a number as directions": (
            lambda: vlm.run(text, interventions=v.Remove(R, v.Last(), 1.0)), "do not fit"),
        "directions of three axes": (
            lambda: vlm.run(text, interventions=v.Remove(R, v.Last(), vector[None, None])),
            "do not fit"),
        "directions of infinity": (
            lambda: vlm.run(text, interventions=v.Remove(R, v.Last(), vector / 0)), "infinity"),
        "a mean of nothing": (lambda: v.Mean.of(vlm, [], R), "at least one prompt"),
        "a mean of patterns": (
            lambda: v.Mean.of(vlm, ["Q:"], "blocks.0.attn.hook_pattern"), "mixes queries"),
        "a mean over new tokens": (
            lambda: v.Mean.of(vlm, ["Q:"], R, at=v.Generated()), "no position"),
        "a mean over pictures of a text": (
            lambda: v.Mean.of(vlm, ["Q:"], R, at=v.Images()), "no picture"),
        "a mean of a number": (lambda: v.Mean.of(vlm, [3], R), "a text or a list"),
        "a mean of another point": (
            lambda: vlm.run(text, interventions=v.Ablate(Z, v.Last(), by=mean)), "was not read"),
        "a mean of the prompt while generating": (
            lambda: v.Ablate(R, v.Last() + v.Generated(), "prompt_mean"), "one by one"),
        # ---------------------------------------------------------------- knockout
        "a word as queries": (lambda: cut("last"), "is not a position"),
        "a word as keys": (lambda: cut(keys="picture"), "is not a position"),
        "new tokens as keys": (lambda: cut(keys=v.Generated()), "positions of the prompt"),
        "a part that there is not": (lambda: cut(part="audio"), "'language', 'vision'"),
        "a knockout in no block": (lambda: cut(layers=()), "at least one block"),
        "a knockout in a block twice": (lambda: cut(layers=(1, 1)), "each once"),
        "a word as blocks": (lambda: cut(layers="all"), "whole number"),
        "half a block": (lambda: cut(layers=0.5), "whole number"),
        "a knockout in a block that there is not": (
            lambda: vlm.run(one, interventions=cut(layers=99)), "blocks.99"),
        "a negative block": (lambda: vlm.run(one, interventions=cut(layers=-1)), "blocks.-1"),
        "a knockout of a head that there is not": (
            lambda: vlm.run(one, interventions=cut(heads=99)), "99"),
        "a knockout of pictures in a text": (
            lambda: vlm.run(text, interventions=cut()), "no picture"),
        "a knockout in the tower of a text": (
            lambda: vlm.run(text, interventions=cut(v.Images(), part="vision")), "no picture"),
        "keys after their queries": (
            lambda: vlm.run(text, interventions=cut(0, v.Last())), "nothing to cut"),
        "half a window": (lambda: cut().each_window(1.5), "whole number"),
        "a window of nothing": (
            lambda: vlm.sweep(one, cut().each_window(0), progress=False), "1 to 8 blocks"),
        "a window of too many": (
            lambda: vlm.sweep(one, cut().each_window(9), progress=False), "1 to 8 blocks"),
        "two knockouts at each point": (
            lambda: vlm.sweep(one, (cut() + cut()).each_layer(), progress=False), "no points"),
        # ---------------------------------------------------------------- attention
        "attention of a batch": (lambda: vlm.attention(both), "attention_by_row"),
        "attention at a word": (lambda: vlm.attention(one, at="last"), "is not a position"),
        "attention at no place": (lambda: vlm.attention(one, at=99), "not in this prompt"),
        "attention at new tokens": (
            lambda: vlm.attention(one, at=v.Generated()), "no position"),
        "attention of a part that there is not": (
            lambda: vlm.attention(one, part="audio"), "not 'audio'"),
        "attention of a block that there is not": (
            lambda: vlm.attention(one, layers=99), "block 99"),
        "attention of a head that there is not": (
            lambda: vlm.attention(one, heads=[99]), "head 99"),
        "a word as attention's blocks": (
            lambda: vlm.attention(one, layers="all"), "whole number"),
        "the tower's attention at the last token": (
            lambda: vlm.attention(one, at=v.Last(), part="vision"), "pictures only"),
        "cross-attention where there is none": (
            lambda: vlm.attention(one, part="cross"), "cross"),
        "another weighing": (lambda: vlm.attention(one, weigh="norm2"), "weigh"),
        "attention misspelt": (lambda: vlm.attention(one, layer=1), "Did you mean 'layers'"),
        "a number for attention's changes": (
            lambda: vlm.attention(one, interventions=3), "interventions="),
        "rollout at a place that there is not": (
            lambda: attention_rollout(vlm, one, at=99), "not in this prompt"),
        # ---------------------------------------------------------------- scores
        "a list as scores": (lambda: v.Scores([1, 2]), "xarray.DataArray"),
        "an array as scores": (lambda: v.Scores(np.zeros((2, 2))), "named axes"),
        "no top": (lambda: look.top(0), "at least 1"),
        "half a top": (lambda: look.top(1.5), "whole number"),
        "the largest of another kind": (lambda: look.top(3, largest="most"), "magnitude"),
        "an axis misspelt": (lambda: look.sum("heads"), "Did you mean 'head'"),
        "a number as an axis": (lambda: look.sum(3), "no axis 3"),
        "a mean over no axis": (lambda: look.mean(), "over which axes"),
        "a block that the scores do not have": (lambda: look.sel(layer=99), "layer 99"),
        "an axis that the scores do not have": (lambda: look.sel(block=1), "no axis 'block'"),
        "scores by number": (lambda: look[0], "by coordinate"),
        "a kind of position that there is not": (lambda: look.of_kind("picture"), "'image 0'"),
        "kinds twice": (lambda: look.by_kind().by_kind(), "no axis 'position'"),
        "kinds by another way": (lambda: look.by_kind("median"), "sum, mean or max"),
        "a mark that there is not": (lambda: look.without("pads"), "marked"),
        "scores and a word": (lambda: look + "1", "scores or a number"),
        "scores of other prompts together": (lambda: look - of_text, "other coordinates"),
        "scores of a text over a picture": (lambda: of_text.over_picture(), "no picture"),
        "a picture of a block that there is not": (
            lambda: look.over_picture(layer=99), "layer 99"),
        "a single number as a figure": (
            lambda: look.sum("layer", "head", "position").plot(), "single number"),
        "scores that are not there": (lambda: v.Scores.load(folder / "gone"), "no scores"),
        "a number as a folder": (lambda: look.save(3), "A path is"),
        "entropy of other scores": (lambda: entropy(look.sum("position")), "position"),
        # ---------------------------------------------------------------- measures
        "a measure's class": (lambda: swept(v.Prob), "make one"),
        "two measures": (lambda: swept([v.Prob("a"), "top1"]), "no measure"),
        "an empty answer": (lambda: swept(v.Prob("")), "no letters"),
        "None as an answer": (lambda: swept(v.Prob(None)), "whole number"),
        "a token beyond the vocabulary": (lambda: swept(v.Prob(10**7)), "no token"),
        "answers for other rows": (lambda: swept(v.Prob(["a", "b", "c"])), "1 row"),
        "two answers that begin alike": (
            lambda: swept(v.LogitDiff("Paris", "Paris")), "cannot tell them apart"),
        "any of nothing": (lambda: v.AnyOf(), "names no answer"),
        "any of a list": (lambda: v.AnyOf(["Paris", "Rome"]), "AnyOf('Paris', ' Paris')"),
        "KL to a word": (lambda: v.KL("clean"), "'plain'"),
        "a measure misspelt": (lambda: swept("top2"), "measure"),
        "memory in words": (lambda: swept(memory="1GB"), "whole number"),
        "less than no memory": (lambda: swept(memory=-1), "at least 1"),
        "no variants": (lambda: vlm.sweep(text, [], progress=False), "empty"),
        "None as variants": (lambda: vlm.sweep(text, None, progress=False), "NoneType"),
        "points as variants": (lambda: vlm.sweep(text, "blocks.*", progress=False), "not str"),
        "a file as a sweep's folder": (
            lambda: swept(save=folder / "notes.txt"), "notes.txt"),
        "a folder of other files": (lambda: swept(save=folder), "holds"),
        "a number as a sweep's folder": (lambda: swept(save=3), "A path is"),
        # ---------------------------------------------------------------- recipes and results
        "a recipe on a task that there is not": (
            lambda: InformationFlow(tasks="country-captial").run(vlm), "country-capital"),
        "a recipe on a name": (
            lambda: InformationFlow(tasks="country-capital").run("toy-llava"), "from_pretrained"),
        "a window that is too wide": (
            lambda: InformationFlow(tasks="country-capital", window=99).run(vlm), "8 blocks"),
        "a word as seeds": (
            lambda: CrossModalPatch(tasks="all", source="text", query="image", seeds="3"),
            "seeds"),
        "a source that there is not": (
            lambda: CrossModalPatch(tasks="all", source="txt", query="image"), "source"),
        "a result that is not there": (lambda: Result.load(folder / "gone"), "no saved result"),
        "a number as a result": (lambda: Result.load(3), "A path is"),
        # ---------------------------------------------------------------- files
        "a cache that is not there": (
            lambda: v.ActivationCache.load(folder / "gone"), "no file"),
        "a number as a cache": (lambda: v.ActivationCache.load(3), "A path is"),
        "a vector that is not there": (lambda: v.TaskVector.load(folder / "gone"), "no file"),
        "a number as a vector": (lambda: v.TaskVector.load(3), "A path is"),
        "a number as a place to save": (lambda: patch().save(3), "A path is"),
        "a mean that is not there": (lambda: v.Mean.load(folder / "gone"), "no file"),
        # ---------------------------------------------------------------- vectors and tasks
        "a number as a task": (lambda: Task.load(3), "no shipped task"),
        "half an example": (lambda: task.examples(1.5, "text", seed=0), "whole number"),
        "fewer than no examples": (lambda: task.examples(-1, "text", seed=0), "negative"),
        "more examples than rows": (lambda: task.examples(999, "text", seed=0), "are left"),
        "a word as a seed": (lambda: task.examples(2, "text", seed="a"), "whole number"),
        "a negative seed": (lambda: task.examples(2, "text", seed=-1), "negative"),
        "a modality that there is not": (
            lambda: task.examples(2, "audio", seed=0), "'text', 'image' or 'description'"),
        "a row that there is not": (lambda: task["Frence"], "Did you mean 'France'"),
        "a split that there is not": (lambda: task.rows("train"), "'validation' or 'test'"),
        "a vector of no prompts": (lambda: v.TaskVector.read(vlm, [], at=v.Last()), "prompt"),
        "a vector without a place": (lambda: v.TaskVector.read(vlm, ["Q:"], at=None), "position"),
        "an ensemble of nothing": (lambda: v.VectorEnsemble([]), "vector"),
        "an ensemble of numbers": (lambda: v.VectorEnsemble([1, 2]), "TaskVector.read"),
        "a task that there is not": (lambda: Task.load("country-captial"), "Did you mean"),
        "a table that is not there": (lambda: table("gone.csv"), "gone.csv"),
        "a table without its columns": (lambda: table("other.csv"), "input"),
        "a table of one row": (lambda: table("rows.csv"), "row"),
        "a saved value that is not there": (
            lambda: v.ActivationPatch.load(folder / "gone"), "gone"),
        "a text file as a saved value": (
            lambda: v.Ablate.load(folder / "notes.txt"), "notes"),
    }  # fmt: skip


def main() -> None:
    """Make every mistake, and print what each was told."""
    warnings.simplefilter("ignore")
    vlm = v.HookedVLM.from_pretrained("toy-llava")
    runs: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        found = cases(vlm, Path(folder)) | wrong_inputs_methods.cases(vlm, Path(folder))
        vlm.hf_model.register_forward_pre_hook(lambda *_: runs.append(1))
        for name, (mistake, words) in found.items():
            runs.clear()
            try:
                mistake()
            except Exception as error:
                kinds = [c.__module__ for c in type(error).__mro__]
                own = any("vlm_lens" in k for k in kinds) or "module 'vlm_lens'" in str(error)
                said = [type(error).__name__, str(error), own]
            else:
                said = ["", "nothing was said", False]
            line = {"name": name, "error": said[0], "said": said[1], "own": said[2]}
            sys.stdout.write(json.dumps({**line, "words": words, "ran": bool(runs)}) + "\n")


if __name__ == "__main__":
    main()
