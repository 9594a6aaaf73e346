"""What the pictures in which a feature is strongest have in common, by the tasks' tables.

A feature is described where at least nine of the ten pictures in which it is strongest share a
value of one attribute. Of several such attributes the one counts whose value is rarest among all
pictures. `chance` is the probability that so many of ten pictures drawn at random share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

from vlm_lens.dictionaries.shipped.corpus import Entities

__all__ = ["TOP", "Share", "shared", "varied"]

TOP, LEAST = 10, 9


@dataclass(frozen=True)
class Share:
    """What a feature's strongest pictures share.

    Attributes:
        feature: The feature.
        attribute: `"domain"`, or a task: `"animal-class"`.
        value: The value that they share.
        count: How many of the ten do.
        all: How many of all pictures do.
        of: How many pictures there are.
        names: The ten, the strongest first.
    """

    feature: int
    attribute: str
    value: str
    count: int
    all: int
    of: int
    names: tuple[str, ...]

    @property
    def chance(self) -> float:
        """The probability of this by a random draw."""
        return float(hypergeom.sf(self.count - 1, self.of, self.all, len(self.names)))

    @property
    def label(self) -> str:
        """A few words."""
        return self.value if self.attribute == "domain" else f"{self.value} ({self.attribute})"


def shared(known: Entities, feature: int, names: Sequence[str]) -> Share | None:
    """What the strongest pictures of a feature share; `None` where it is nothing.

    Args:
        known: All entities.
        feature: The feature.
        names: The entities of its strongest pictures.
    """
    found = []
    for attribute in {a for name in names for a in known[name][1]}:
        facts = [known[name][1].get(attribute) for name in names]
        value, count = Counter(f for f in facts if f is not None).most_common(1)[0]
        if count >= LEAST and len(names) == TOP:
            total = sum(facts.get(attribute) == value for _, facts in known.values())
            found.append(Share(feature, attribute, value, count, total, len(known), tuple(names)))
    return min(found, key=lambda share: (share.all, share.attribute), default=None)


def varied(shares: Sequence[Share], most: int) -> list[Share]:
    """Some of many, the least likely by chance first, each value as often as the others."""
    by_value: dict[tuple[str, str], list[Share]] = {}
    for share in sorted(shares, key=lambda s: (s.chance, s.feature)):
        by_value.setdefault((share.attribute, share.value), []).append(share)
    chosen: list[Share] = []
    while len(chosen) < most and any(by_value.values()):
        for waiting in by_value.values():
            if waiting and len(chosen) < most:
                chosen.append(waiting.pop(0))
    return sorted(chosen, key=lambda s: (s.chance, s.feature))
