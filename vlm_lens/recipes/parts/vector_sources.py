"""Where a task is read from: the prompts of each source, and the vectors that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.chat import ChatTemplate
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.many import read_each
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.recipes.result import RecipeError
from vlm_lens.serial import FrozenTensor
from vlm_lens.tasks import Split, Task, draw_examples
from vlm_lens.tasks.rows import Row
from vlm_lens.terms import EMBED, Layer, layers_of

__all__ = [
    "Form",
    "Query",
    "Source",
    "TaskVectors",
    "few_shot",
    "in_form",
    "is_loaded",
    "last_rows",
    "open_prompts",
    "given_rows",
    "relative_layer",
    "residual_stream",
    "writable_into",
]

Source = Literal["text", "image", "description", "instruction"]
Query = Literal["image", "text", "description"]
Form = Literal["question-answer", "chat"]


def in_form(task: Task, form: Form, vlm: HookedVLM) -> Task:
    """The task, written in one form: its own template, or the model's chat template.

    Raises:
        PromptError: The model's processor has no chat template.
    """
    return task if form == "question-answer" else replace(task, template=ChatTemplate(vlm))


def given_rows(task: Task, *modalities: str) -> Task:
    """The task on the rows that can be given so: with a description, where one is asked for."""
    if "description" not in modalities:
        return task
    return replace(task.described(), name=task.name)


def open_prompts(
    task: Task, source: Source, *, seed: int = 1, n: int = 5, split: Split = "validation"
) -> tuple[RawPrompt, ...]:
    """The prompts at whose last position the task is read: as many as the split has rows.

    Each shows `n - 1` full examples and the input of one more, its answer left open: Hendel et al.
    2023's dummy query. In the code of Luo et al. 2025 the same `n` examples are followed by a
    query, and the vector is read at the last example's delimiter, `Find(":", -3)`; what follows
    that delimiter cannot act on it, so it is left out here. This holds for any template and any
    number of colons.

    Args:
        task: The task.
        source: Whether examples are given by name, picture or description, or the task in words:
            then there is one prompt, the instruction alone.
        seed: The seed of the draw; see `draw_examples`.
        n: How many examples, the open one included.
        split: Whose rows are drawn: the validation rows for vectors that are patched.
    """
    if source == "instruction":
        return (RawPrompt(task.instruction),)
    rows, prompts = given_rows(task, source).rows(split), []
    for drawn in draw_examples(len(rows), n, seed=seed):
        *full, last = (rows[i] for i in drawn)
        pairs = [(row.given(source), row.output) for row in full]
        prompts.append(task.template.build(pairs, last.given(source)))
    return tuple(prompts)


def few_shot(
    task: Task,
    source: Source,
    query: Query,
    *,
    seed: int = 1,
    n: int = 5,
    split: Split = "test",
) -> tuple[RawPrompt, ...]:
    """The prompting baseline: what says the task, and the query, in one context.

    Args:
        task: The task.
        source: What says the task: `n` examples of the other rows, or the instruction.
        query: Whether the queries are given by name, picture or description.
        seed: The seed of the draw.
        n: How many examples.
        split: Whose rows are the queries, one prompt each, and give the examples.
    """
    if source != "instruction":
        return task.example_sets(source, seed=seed, target_modality=query, n=n, split=split)
    queries = [task.query(row, query) for row in task.rows(split)]
    return tuple(RawPrompt(f"{task.instruction}\n\n{q.text}", q.images) for q in queries)


def last_rows(
    task: Task, source: Source, *, seed: int = 1, n: int = 5, split: Split = "validation"
) -> list[Row]:
    """The row that each of `open_prompts` leaves open."""
    rows = given_rows(task, source).rows(split)
    return [rows[drawn[-1]] for drawn in draw_examples(len(rows), n, seed=seed)]


@torch.no_grad()
def residual_stream(
    vlm: HookedVLM,
    prompts: Sequence[RawPrompt],
    *,
    batch_size: int = 16,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Float[Tensor, "prompts layers d_model"]:
    """The last position of each prompt, on the CPU: the embedding, then the output of each block.

    Args:
        vlm: A HookedVLM.
        prompts: The prompts.
        batch_size: How many prompts run together.
        progress: What the batches are passed through, for a progress bar.
    """
    names = ["hook_merged", *vlm.architecture.points.match("blocks.*.hook_resid_post")]
    read = []
    for start in progress(range(0, len(prompts), batch_size)):
        batch = vlm.as_prompt(list(prompts[start : start + batch_size]))
        _, cache = vlm.run_with_cache(
            batch, names_filter=names, positions=Last(), device="cpu", last_logits=1
        )
        read.append(torch.stack([cache[name][:, 0] for name in names], dim=1))
    return torch.cat(read)


def is_loaded(model: Any) -> bool:
    """Whether this is a HookedVLM, not the name of one."""
    return isinstance(model, HookedVLM)


def writable_into(vlm: HookedVLM, model: Any, *, field: str) -> Any:
    """Another model, loaded like the VLM, whose vectors can be written into the VLM.

    Args:
        vlm: The HookedVLM that is written into; its device and dtype are taken.
        model: The name, folder or Hub id of the other, or a HookedVLM.
        field: The recipe's field that names it, for the message.

    Raises:
        RecipeError: Its width is not the VLM's, or it has fewer blocks.
    """
    where = {"device": vlm.device, "dtype": vlm.dtype}
    other = model if is_loaded(model) else HookedVLM.from_pretrained(model, **where)
    for size, fits in (("d_model", int.__eq__), ("n_layers", int.__ge__)):
        theirs, mine = getattr(other.cfg, size), getattr(vlm.cfg, size)
        if not fits(theirs, mine):
            raise RecipeError(
                f"{field}: {other.name} has {size} {theirs}, {vlm.name} has {mine}. Vectors can "
                "be written only where widths are equal and there is a vector for every block."
            )
    return other


def relative_layer(layer: Layer, of: int, n_layers: int) -> Layer:
    """The layer at the same relative depth as `layer` of a model of `of` blocks."""
    depth = 0 if layer == EMBED else layer + 1
    return layers_of(n_layers)[int(depth / of * n_layers + 0.5)]


class TaskVectors:
    """The task vectors of one model from one source; each is read once, every layer at a time.

    Called with a task and a seed it gives the vector.

    Args:
        vlm: The HookedVLM that they are read on.
        source: Where the task is read from.
        kind: What a call gives: the mean over the prompts of all validation rows, as in the
            paper's tables, or the vector of a single prompt of them, drawn by the seed.
        n_examples: How many examples a prompt has.
        form: How prompts are written.
        batch_size: How many prompts run together.
    """

    def __init__(
        self,
        vlm: HookedVLM,
        source: Source,
        *,
        kind: Literal["mean", "single"] = "mean",
        n_examples: int = 5,
        form: Form = "question-answer",
        batch_size: int = 32,
    ):
        self.vlm, self.source, self.kind = vlm, source, kind
        self.n_examples, self.form, self.batch_size = n_examples, form, batch_size
        self._read: dict[tuple[Task, int], dict[str, TaskVector]] = {}

    def prompts(self, task: Task, seed: int) -> tuple[RawPrompt, ...]:
        """What a vector is read from; see `open_prompts`."""
        task = in_form(task, self.form, self.vlm)
        return open_prompts(task, self.source, seed=seed, n=self.n_examples)

    def each(self, task: Task, seed: int) -> Float[Tensor, "prompts layers d_model"]:
        """The vector of each prompt by itself; not kept."""
        prompts = self.prompts(task, seed)
        return read_each(self.vlm, prompts, at=Last(), batch_size=self.batch_size)

    def __call__(self, task: Task, seed: int) -> TaskVector:
        """The vector of the chosen kind."""
        return self._both(task, seed)[self.kind]

    def single(self, task: Task, seed: int) -> TaskVector:
        """The vector of a single prompt."""
        return self._both(task, seed)["single"]

    def _both(self, task: Task, seed: int) -> dict[str, TaskVector]:
        if (task, seed) not in self._read:
            values, texts = self.each(task, seed), [p.text for p in self.prompts(task, seed)]
            one = int(np.random.RandomState(seed).permutation(len(texts))[0])
            self._read[task, seed] = {
                "mean": self._vector(values.double().mean(0).to(values.dtype), texts, seed),
                "single": self._vector(values[one], [texts[one]], seed),
            }
        return self._read[task, seed]

    def _vector(self, values: Tensor, texts: list[str], seed: int) -> TaskVector:
        return TaskVector(
            FrozenTensor(values), kind="resid_post", source=self.vlm.facts, at=Last(),
            prompts=tuple(texts), seed=None if self.source == "instruction" else seed,
        )  # fmt: skip
