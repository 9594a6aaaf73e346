"""The curriculum: what is planted, which losses, how long, how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "EARLY_FUSION",
    "LANGUAGE",
    "Planting",
    "SEEING",
    "VISION_LANGUAGE",
    "Stage",
    "learning_rate",
    "scaled",
]


@dataclass(frozen=True)
class Planting:
    """What is planted, and where.

    Attributes:
        input_block: The block after which the input phase ends.
        task_block: The block after which the delimiter holds the task.
        replaced: Share of the delimiters in context that the first interchange replaces.
        word_mass: Probability given to the task's word before its answer.
        input_lens: Weight of the loss that makes the delimiter decode to itself up to
            `input_block`; zero leaves the decoding of the input phase to chance.
    """

    input_block: int = 1
    task_block: int = 4
    replaced: float = 0.5
    word_mass: float = 0.0
    input_lens: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Its name in logs and checkpoints.
        sees: Whether it trains the vision-language model, not its language model.
        steps: How many steps.
        lr: Learning rate of the language model; zero freezes it.
        vision_lr: Learning rate of what sees.
        planting: What is planted.
        contexts: Text prompts with examples a step; zero leaves text out.
        bares: Bare text queries a step.
        targets: Targets of the task interchange a step.
        blanks: Targets of the early residuals a step.
        spelled: Share of text answers spelled out.
        image_matches: Pictures matched with names a step.
        image_contexts: Image prompts with examples a step.
        image_bares: Bare image queries a step.
        image_targets: Targets of the task interchange among image prompts a step; zero plants
            nothing in pictures.
        examples: Share of steps with 1, 2, 3, 4 and 5 examples.
        warmup: Steps over which the learning rate rises.
        decay: Share of the steps over which it falls at the end.
        final: What share of the learning rate is left at the end.
    """

    name: str
    sees: bool
    steps: int
    lr: float
    vision_lr: float = 0.0
    planting: Planting = Planting()
    contexts: int = 0
    bares: int = 0
    targets: int = 0
    blanks: int = 0
    spelled: float = 0.0
    image_matches: int = 0
    image_contexts: int = 0
    image_bares: int = 0
    image_targets: int = 0
    examples: tuple[float, ...] = (0.1, 0.25, 0.3, 0.25, 0.1)
    warmup: int = 100
    decay: float = 0.3
    final: float = 0.05


_PHASES = Planting(word_mass=0.3, input_lens=0.1)

LANGUAGE: tuple[Stage, ...] = (
    Stage("text", False, 1000, lr=2e-3, contexts=40, bares=24, targets=64, final=1.0),
    Stage(
        "task-word",
        False,
        900,
        lr=1e-3,
        planting=_PHASES,
        contexts=40,
        bares=24,
        targets=64,
        blanks=24,
        spelled=0.1,
    ),
)
SEEING: tuple[Stage, ...] = (
    Stage("match", True, 800, lr=0.0, vision_lr=2e-3, image_matches=96),
    Stage("align", True, 400, lr=0.0, vision_lr=1e-3, image_bares=64),
)
VISION_LANGUAGE = Stage(
    "vlm",
    True,
    2000,
    lr=1e-3,
    vision_lr=1.5e-3,
    planting=_PHASES,
    contexts=12,
    bares=12,
    targets=48,
    blanks=12,
    spelled=0.1,
    image_contexts=16,
    image_bares=24,
    decay=0.55,
)
# Where the language model itself must learn to see, naming pictures comes first, and prompts with
# examples take longest.
EARLY_FUSION: tuple[Stage, ...] = (
    replace(
        VISION_LANGUAGE,
        name="see",
        steps=700,
        contexts=8,
        bares=8,
        targets=24,
        blanks=8,
        image_contexts=0,
        image_bares=64,
        final=1.0,
    ),
    replace(VISION_LANGUAGE, steps=700, image_contexts=12, image_bares=32, final=1.0),
    replace(
        VISION_LANGUAGE,
        name="contexts",
        steps=2000,
        bares=8,
        targets=32,
        blanks=8,
        image_contexts=24,
        image_bares=12,
    ),
    # Without this even the vectors of pictures do little on pictures: the entity, which the
    # language model has only just seen, is not looked up under a task that is written in.
    replace(
        VISION_LANGUAGE,
        name="picture-task",
        steps=700,
        contexts=8,
        bares=6,
        targets=24,
        blanks=6,
        image_contexts=16,
        image_bares=8,
        image_targets=32,
    ),
)


def scaled(stages: tuple[Stage, ...], total: int) -> tuple[Stage, ...]:
    """Shorten (or lengthen) stages so that their steps sum to about `total`."""
    factor = total / sum(s.steps for s in stages)
    return tuple(
        replace(s, steps=max(1, round(s.steps * factor)), warmup=round(s.warmup * min(1, factor)))
        for s in stages
    )


def learning_rate(stage: Stage, step: int) -> float:
    """Return the factor on the learning rates at a step: up, flat, down."""
    rise = min(1.0, (step + 1) / max(1, stage.warmup))
    left = (stage.steps - step) / max(1.0, stage.decay * stage.steps)
    return rise * (stage.final + (1 - stage.final) * min(1.0, left))
