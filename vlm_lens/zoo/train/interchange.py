"""The losses: next-token prediction, and the two interchanges that plant the phases.

*Input phase.* The residual after block `input_block` at a delimiter in context is replaced by
that of an unrelated bare query, and the run must still give the answer in context: so early on
the delimiter can hold neither the task nor the entity.

*Task phase.* The residual after block `task_block` at a delimiter in context (or at the end of an
instruction) is written at the delimiter of an unrelated bare query, and that run must answer its
own entity under the source's task: so at this block the delimiter holds the task, and only it.

*No task early.* The converse of the first: the residual after `input_block` at a delimiter in
context is written at that of an unrelated bare query, and that run must still name its entity.

All are on text alone, unless a stage has `image_targets`: then the task interchange is made among
image prompts too, and still never from text to pictures or back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vlm_lens.zoo.train.configs import decoder_layers, final_norm
from vlm_lens.zoo.train.corpus import Batch, Corpus
from vlm_lens.zoo.train.curriculum import Planting
from vlm_lens.zoo.train.world import Task

__all__ = [
    "Tally",
    "Tap",
    "answer_loss",
    "draw_vectors",
    "hidden_states",
    "tapped",
    "text_losses",
]


@dataclass
class Tap:
    """What to write after a block, and what to read there (after the write).

    Attributes:
        block: The block.
        rows: Rows to write.
        positions: Positions to write.
        values: What to write; nothing is written if none is given.
        seen: The block's output, once the model has run.
    """

    block: int
    rows: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    values: torch.Tensor | None = None
    seen: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Act as a forward hook."""
        if self.values is not None:
            output = output.index_put((self.rows, self.positions), self.values)
        self.seen = output
        return output


@contextmanager
def tapped(model: nn.Module, *taps: Tap) -> Iterator[None]:
    """Hook taps to the language model's blocks, and remove them afterwards."""
    handles = [decoder_layers(model)[tap.block].register_forward_hook(tap) for tap in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Tally:
    """Sums for the log: numerators and denominators by name."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """Add a sum over `count` items."""
        old = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (old[0] + value, old[1] + count)

    def means(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {k: round(v / max(n, 1e-9), 4) for k, (v, n) in self.sums.items()}
        self.sums = {}
        return means


def hidden_states(
    model: nn.Module, batch: Batch, images: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Run the model up to its final norm."""
    return model.model(input_ids=batch.ids, use_cache=False, **(images or {})).last_hidden_state


def answer_loss(
    model: nn.Module,
    hidden: torch.Tensor,
    batch: Batch,
    tally: Tally,
    name: str,
    word_mass: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy at the answers.

    Args:
        model: The model.
        hidden: Its final hidden states.
        batch: The batch.
        tally: Where accuracies of first tokens are noted.
        name: Under which name.
        word_mass: Probability of the task's word at the first token, where there is a task.

    Returns:
        The weighted mean.
    """
    logits = model.lm_head(hidden[batch.at[:, 0], batch.at[:, 1]])
    log_probs = functional.log_softmax(logits, dim=-1)
    loss = -log_probs.gather(1, batch.wanted[:, None])[:, 0]
    if word_mass:
        has_word = batch.word >= 0
        other = -log_probs.gather(1, batch.word.clamp(min=0)[:, None])[:, 0]
        loss = torch.where(has_word, (1 - word_mass) * loss + word_mass * other, loss)
    loss = (loss * batch.weight).sum() / batch.weight.sum()
    right = (logits.argmax(-1) == batch.wanted)[batch.first]
    tally.add(f"{name}_acc", right.sum().item(), right.numel())
    tally.add(f"{name}_loss", loss.item())
    return loss


def text_losses(
    model: nn.Module,
    corpus: Corpus,
    rng: np.random.Generator,
    planting: Planting,
    tally: Tally,
    *,
    contexts: int,
    bares: int,
    targets: int,
    examples: int,
    blanks: int = 0,
    instructed: float = 0.2,
    spelled: float = 0.0,
) -> torch.Tensor:
    """Sum the losses of one text step, with the interchanges.

    Args:
        model: Either model.
        corpus: The corpus.
        rng: The step's generator.
        planting: What is planted.
        tally: The log's sums.
        contexts: Prompts with examples.
        bares: Bare queries, which also serve the first interchange.
        targets: Bare queries that the second interchange writes into.
        examples: Examples of a prompt.
        blanks: Bare queries that must not learn a task from an early residual.
        instructed: Share of prompts with an instruction.
        spelled: Share of answers spelled out.

    Returns:
        The loss.
    """
    bare = corpus.batch(corpus.bare_rows(rng, bares, "text"))
    source = Tap(planting.input_block)
    with tapped(model, source):
        hidden = hidden_states(model, bare)
    loss = 0.3 * answer_loss(model, hidden, bare, tally, "name")
    neutral = source.seen[torch.arange(bares), bare.open_at]
    if planting.input_lens:
        loss = loss + planting.input_lens * _input_lens(model, neutral, bare, tally)

    context = corpus.batch(
        corpus.context_rows(rng, contexts, examples, "text", instructed=instructed, spelled=spelled)
    )
    where = torch.tensor([(d.row, d.position) for d in context.delimiters])
    chosen = torch.from_numpy(rng.random(len(where)) < planting.replaced)
    picks = torch.from_numpy(rng.integers(bares, size=int(chosen.sum())))
    early = Tap(planting.input_block, where[chosen, 0], where[chosen, 1], neutral[picks])
    late = Tap(planting.task_block)
    with tapped(model, early, late):
        hidden = hidden_states(model, context)
    loss = loss + answer_loss(model, hidden, context, tally, "context", planting.word_mass)

    tasks, vectors = draw_vectors(context, late, rng, targets)
    target = corpus.batch(corpus.target_rows(rng, tasks))
    write = Tap(planting.task_block, torch.arange(targets), target.open_at, vectors)
    with tapped(model, write):
        hidden = hidden_states(model, target)
    loss = loss + answer_loss(model, hidden, target, tally, "patch", planting.word_mass)
    if not blanks or bool(chosen.all()):
        return loss

    kept = (~chosen).nonzero()[:, 0]
    picks = kept[torch.from_numpy(rng.integers(len(kept), size=blanks))]
    vectors = early.seen[where[picks, 0], where[picks, 1]]
    blank = corpus.batch(corpus.bare_rows(rng, blanks, "text"))
    write = Tap(planting.input_block, torch.arange(blanks), blank.open_at, vectors)
    with tapped(model, write):
        hidden = hidden_states(model, blank)
    return loss + 0.3 * answer_loss(model, hidden, blank, tally, "blank")


def draw_vectors(
    batch: Batch, tap: Tap, rng: np.random.Generator, count: int
) -> tuple[list[Task], torch.Tensor]:
    """Draw delimiters at which a task is known, and what a tap has seen there, `[count, width]`."""
    where = torch.tensor([(d.row, d.position) for d in batch.delimiters])
    picks = rng.integers(len(where), size=count)
    tasks = [batch.delimiters[i].task for i in picks]
    return tasks, tap.seen[where[picks, 0], where[picks, 1]]


def _input_lens(model: nn.Module, neutral: torch.Tensor, bare: Batch, tally: Tally) -> torch.Tensor:
    colon = bare.ids[torch.arange(len(neutral)), bare.open_at]
    loss = functional.cross_entropy(model.lm_head(final_norm(model)(neutral)), colon)
    tally.add("input_lens_loss", loss.item())
    return loss
