"""The losses of one step of a stage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from vlm_lens.zoo.train.corpus import Batch, Corpus
from vlm_lens.zoo.train.curriculum import Stage
from vlm_lens.zoo.train.interchange import (
    Tally,
    Tap,
    answer_loss,
    draw_vectors,
    hidden_states,
    tapped,
    text_losses,
)
from vlm_lens.zoo.train.matching import match_loss
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.pictures import Album

__all__ = ["step_loss"]


def step_loss(
    stage: Stage,
    organism: Organism,
    model: nn.Module,
    corpus: Corpus,
    album: Album | None,
    rng: np.random.Generator,
    tally: Tally,
) -> Iterator[torch.Tensor]:
    """Yield the losses of one step, each to be sent backwards before the next is made.

    Args:
        stage: The stage.
        organism: What kind of model it is.
        model: The model.
        corpus: The corpus.
        album: The pictures; none for a language model.
        rng: The step's generator.
        tally: The log's sums.
    """
    examples = 1 + int(rng.choice(len(stage.examples), p=stage.examples))
    if stage.contexts:
        yield text_losses(
            model,
            corpus,
            rng,
            stage.planting,
            tally,
            contexts=stage.contexts,
            bares=stage.bares,
            targets=stage.targets,
            examples=examples,
            blanks=stage.blanks,
            spelled=stage.spelled,
        )
    if stage.image_matches:
        yield match_loss(organism, model, corpus, album, rng, stage.image_matches, tally)
    bares = contexts = None
    if stage.image_bares:
        bares = corpus.batch(corpus.bare_rows(rng, stage.image_bares, "image"))
    if stage.image_contexts:
        rows = corpus.context_rows(rng, stage.image_contexts, examples, "image")
        contexts = corpus.batch(rows)
    if bares:
        hidden = hidden_states(model, bares, _images(organism, album, bares, rng))
        yield answer_loss(model, hidden, bares, tally, "image_name")
    if contexts:
        images = _images(organism, album, contexts, rng)
        late = Tap(stage.planting.task_block)
        with tapped(model, late):
            hidden = hidden_states(model, contexts, images)
        word_mass = stage.planting.word_mass
        loss = answer_loss(model, hidden, contexts, tally, "image_context", word_mass)
        if stage.image_targets:
            tasks, vectors = draw_vectors(contexts, late, rng, stage.image_targets)
            target = corpus.batch(corpus.target_rows(rng, tasks, "image"))
            write = Tap(late.block, torch.arange(len(tasks)), target.open_at, vectors)
            images = _images(organism, album, target, rng)
            with tapped(model, write):
                hidden = hidden_states(model, target, images)
            loss = loss + answer_loss(model, hidden, target, tally, "image_patch", word_mass)
        yield loss


def _images(
    organism: Organism, album: Album, batch: Batch, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    return organism.image_inputs(album.augmented(batch.pictures, rng), len(batch.ids))
