"""Tasks of words alone, which a small real language model can do: no pictures, little knowledge."""

from __future__ import annotations

import numpy as np

from vlm_lens.tasks.rows import Row

__all__ = ["rows"]

_NOUNS = (
    "table chair book house river street window garden letter picture teacher doctor engine bottle "
    "mirror bridge candle pencil ticket jacket basket corner market island planet camera tunnel "
    "ladder hammer farmer driver singer writer soldier student neighbor cousin friend king queen "
    "forest desert mountain ocean cloud storm winter summer morning number question problem reason "
    "story song game wheel button pocket blanket pillow ribbon"
)
_OPPOSITES = (
    "hot>cold big>small tall>short fast>slow light>dark high>low open>closed early>late rich>poor "
    "strong>weak happy>sad full>empty hard>soft wet>dry old>young clean>dirty near>far loud>quiet "
    "thick>thin deep>shallow wide>narrow good>bad right>wrong up>down inside>outside first>last "
    "always>never black>white begin>end buy>sell love>hate push>pull win>lose come>go give>take "
    "day>night man>woman king>queen brother>sister front>back top>bottom left>right north>south "
    "east>west true>false yes>no before>after over>under heavy>light sharp>dull rough>smooth "
    "brave>cowardly cheap>expensive ancient>modern public>private guilty>innocent alive>dead "
    "simple>complex sweet>sour accept>reject arrive>depart"
)
_PAST = (
    "go>went see>saw take>took give>gave write>wrote run>ran eat>ate drink>drank sing>sang "
    "swim>swam begin>began find>found keep>kept leave>left meet>met pay>paid say>said sell>sold "
    "send>sent sit>sat sleep>slept speak>spoke stand>stood teach>taught tell>told think>thought "
    "win>won break>broke bring>brought buy>bought catch>caught choose>chose come>came draw>drew "
    "drive>drove fall>fell feel>felt fight>fought fly>flew forget>forgot get>got grow>grew "
    "hear>heard hide>hid hold>held know>knew lose>lost make>made mean>meant ride>rode "
    "ring>rang rise>rose "
    "shake>shook shine>shone shoot>shot spend>spent steal>stole throw>threw wake>woke wear>wore"
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(pair.split(">")) for pair in text.split()]


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def rows(name: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The validation and test rows of one of the tasks, 30 and the rest, mixed once for all.

    Args:
        name: One of `vlm_lens.tasks.WORD_TASKS`.
    """
    nouns = _NOUNS.split()
    pairs = {
        "word-plural": [(noun, _plural(noun)) for noun in nouns],
        "word-capitals": [(noun, noun.upper()) for noun in nouns],
        "word-opposite": _pairs(_OPPOSITES),
        "word-past": _pairs(_PAST),
    }[name]
    order = np.random.RandomState(0).permutation(len(pairs))
    made = [Row(*pairs[i]) for i in order]
    return tuple(made[:30]), tuple(made[30:])
