"""What is trained, how long and on what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vlm_lens.zoo.smol.language import KINDS

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """What is trained, how long and on what.

    Attributes:
        name: Its name in logs.
        seed: Of everything.
        tower_steps: Steps in which the tower alone learns to tell the pictures apart.
        tower_views: Views a step of those.
        steps: Steps with the language model.
        names: Rows a step that name a picture.
        captions: Rows a step that say more of a picture.
        facts: Rows a step of plain sentences.
        samples: Samples a step on which the language model must stay what it was.
        pictured: Whether facts are also asked of pictures without a name.
        rank: Rank of the language model's update; zero leaves it frozen.
        kinds: Which maps it changes.
        blocks: In how many blocks, from the first on.
        lr: Learning rate of the update.
        seeing_lr: Learning rate of the projector, and of the tower in its own stage.
        tower_lr: Learning rate of the tower with the language model.
        stay: Weight of the divergence on samples.
        name_weight: Weight of the naming loss.
        own_samples: How many samples are drawn.
        evaluate_every: Steps between evaluations.
    """

    name: str = "smol-llava"
    seed: int = 0
    tower_steps: int = 500
    tower_views: int = 512
    steps: int = 800
    names: int = 96
    captions: int = 128
    facts: int = 256
    samples: int = 48
    pictured: bool = True
    rank: int = 16
    kinds: tuple[str, ...] = tuple(KINDS)
    blocks: int = 30
    lr: float = 3e-4
    seeing_lr: float = 1e-3
    tower_lr: float = 3e-4
    stay: float = 2.0
    name_weight: float = 1.0
    own_samples: int = 1536
    evaluate_every: int = 400

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Recipe:
        """From what `asdict` or a JSON file gives."""
        return cls(**{**fields, "kinds": tuple(fields["kinds"])})

    def scaled(self, steps: int) -> Recipe:
        """The same recipe shorter or longer, its two stages in proportion."""
        share = steps / (self.tower_steps + self.steps)
        return replace(
            self,
            tower_steps=max(1, round(share * self.tower_steps)),
            steps=max(1, round(share * self.steps)),
            evaluate_every=max(1, round(share * self.evaluate_every)),
        )
