"""What recipes are checked against: plain transformers and torch hooks, prompt by prompt."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from vlm_lens import zoo
from vlm_lens.tasks import Task

QUERY = "Q:<image>\nA:"


def small(name, validation=8, test=10):
    """A shipped task with few rows."""
    task = Task.load(name)
    return replace(task, validation=task.validation[:validation], test=task.test[:test])


class Plain:
    """A model of the zoo without vlm_lens."""

    def __init__(self, name):
        where = zoo.path(name)
        seeing = hasattr(AutoConfig.from_pretrained(where), "vision_config")
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        self.model = kind.from_pretrained(where).eval()
        self.processor = (AutoProcessor if seeing else AutoTokenizer).from_pretrained(where)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.blocks = (self.model.model.language_model if seeing else self.model.model).layers
        config = getattr(self.model.config, "text_config", self.model.config)
        self.n_heads = config.num_attention_heads

    def inputs(self, text, images=()):
        pictures = {"images": list(images)} if images else {}
        return self.processor(text=text, return_tensors="pt", **pictures)

    @torch.no_grad()
    def logits(self, text, images=(), *, outputs=(), inputs=()):
        """The last position's logits; `outputs` and `inputs` are (module, function) pairs."""
        with ExitStack() as stack:
            for module, edit in outputs:
                hook = module.register_forward_hook(lambda m, a, out, edit=edit: edit(out))
                stack.callback(hook.remove)
            for module, edit in inputs:
                hook = module.register_forward_pre_hook(lambda m, a, edit=edit: edit(a[0]))
                stack.callback(hook.remove)
            return self.model(**self.inputs(text, images)).logits[0, -1]

    def says(self, text, images=(), **edits):
        return self.tokenizer.decode([int(self.logits(text, images, **edits).argmax())]).strip()

    def generates(self, text, images=(), n=3, patch=None):
        """Greedy tokens without a cache; the patch (layer, vector) stays at the prompt's end."""
        inputs, new = self.inputs(text, images), []
        at, ends = inputs["input_ids"].shape[1] - 1, self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]

        def edit(module, args, output):
            output = output.clone()
            output[:, at] = patch[1]
            return output

        hook = patch and self.blocks[patch[0]].register_forward_hook(edit)
        with torch.no_grad():
            while len(new) < n and not set(new[-1:]) & set(ends):
                new.append(int(self.model(**inputs).logits[0, -1].argmax()))
                more = {"input_ids": new[-1], "attention_mask": 1}
                for name, value in more.items():
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], 1)
        if hook:
            hook.remove()
        return self.tokenizer.decode(new, skip_special_tokens=True)

    def put(self, layer, vector):
        """The (module, function) pair that writes a vector at the last position of a block."""

        def edit(output):
            output = output.clone()
            output[:, -1] = vector
            return output

        return self.blocks[layer], edit

    def vector(self, texts, nth=-3):
        """The mean over prompts at the nth colon, after every block, `[layers, d]`."""
        colon = self.tokenizer(":", add_special_tokens=False)["input_ids"][0]
        total = 0
        for text in texts:
            kept = []
            self.logits(text, outputs=[(block, kept.append) for block in self.blocks])
            at = (self.inputs(text)["input_ids"][0] == colon).nonzero().flatten()[nth]
            total = total + torch.stack([out[0, at].double() for out in kept])
        return (total / len(texts)).float()

    def projection(self, layer):
        """The module that takes all heads of a block, `[.., heads * d_head]`, to the stream."""
        return self.blocks[layer].self_attn.o_proj

    def heads(self, texts):
        """The mean over prompts of every head at the last position, `[layers, heads, d_head]`."""
        total = 0
        for text in texts:
            kept = []
            modules = [self.projection(i) for i in range(len(self.blocks))]
            self.logits(text, inputs=[(module, kept.append) for module in modules])
            total = total + torch.stack([z[0, -1].double() for z in kept])
        return (total / len(texts)).float().unflatten(-1, (self.n_heads, -1))

    def put_heads(self, layer, heads, means):
        """The (module, function) pair that puts heads' means in place at the last position."""

        def edit(z):
            z = z.clone().unflatten(-1, (self.n_heads, -1))
            z[:, -1, list(heads)] = means[layer, list(heads)]
            return (z.flatten(-2),)

        return self.projection(layer), edit


def few_shot(rows, seed, query=None, n=5):
    """The prompts of one seed, drawn with numpy alone; each row's own query is open."""
    np.random.seed(seed)
    texts = []
    for asked, row in enumerate(rows):
        drawn = np.random.permutation([i for i in range(len(rows)) if i != asked])[:n]
        shown = "".join(f"Q:{rows[i].input}\nA:{rows[i].output}\n\n" for i in drawn)
        texts.append(shown + (query or f"Q:{row.input}\nA:"))
    return texts


def right(said, answers):
    return any(bool(said) and (said.startswith(a) or a.startswith(said)) for a in answers)
