"""Contrastive pretraining of the tower: a picture finds its name among all names.

What CLIP's pretraining is to LLaVA, in small: the mean of a picture's projected tokens is matched
with the language model's own (frozen) embedding of the name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.interchange import Tally
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.pictures import Album

__all__ = ["match_loss"]

_TEMPERATURE = 0.05


def match_loss(
    organism: Organism,
    model: nn.Module,
    corpus: Corpus,
    album: Album,
    rng: np.random.Generator,
    count: int,
    tally: Tally,
) -> torch.Tensor:
    """Match random pictures with the names of all entities.

    Args:
        organism: What kind of model it is.
        model: The vision-language model.
        corpus: The corpus.
        album: The pictures.
        rng: The step's generator.
        count: How many pictures.
        tally: The log's sums.

    Returns:
        The mean cross-entropy over all names.
    """
    entities = [e for d in corpus.world.domains for e in corpus.world.entities[d]]
    embedding = model.get_input_embeddings().weight.detach()
    names = torch.stack([embedding[corpus.encode(e.name)].mean(0) for e in entities])
    names = functional.normalize(names - names.mean(0), dim=-1)
    wanted = rng.integers(len(entities), size=count)
    pixels = album.augmented([entities[i].image for i in wanted], rng)
    features = organism.picture_features(model, pixels)
    seen = functional.normalize(features.mean(1), dim=-1)
    logits = seen @ names.T / _TEMPERATURE
    wanted = torch.from_numpy(wanted)
    loss = functional.cross_entropy(logits, wanted)
    tally.add("match_acc", (logits.argmax(-1) == wanted).sum().item(), count)
    tally.add("match_loss", loss.item())
    return loss
