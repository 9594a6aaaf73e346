"""Prompts with examples of small word tasks that have nothing to do with the six.

The language model must stay on them what it was, as on its own samples: sentences of facts alone
would wear off its habit of learning from examples. They teach nothing, as the frozen model's own
distribution is the target.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["WORD_TASKS", "unrelated_prompts"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(pair.split(">")) for pair in text.split())


_NOUNS = _words(
    "table chair book house river street window garden letter picture teacher doctor engine bottle "
    "mirror bridge candle pencil ticket jacket basket corner market village island planet camera "
    "tunnel ladder hammer"
)

WORD_TASKS: dict[str, tuple[tuple[str, str], ...]] = {
    "plural": tuple((noun, f"{noun}s") for noun in _NOUNS),
    "capitals": tuple((noun, noun.upper()) for noun in _NOUNS),
    "opposite": _pairs(
        "hot>cold big>small tall>short fast>slow light>dark high>low open>closed early>late "
        "rich>poor strong>weak happy>sad full>empty hard>soft wet>dry old>young clean>dirty "
        "near>far loud>quiet thick>thin deep>shallow wide>narrow good>bad right>wrong up>down "
        "inside>outside first>last always>never black>white begin>end buy>sell"
    ),
    "past": _pairs(
        "go>went see>saw take>took give>gave write>wrote run>ran eat>ate drink>drank sing>sang "
        "swim>swam begin>began find>found keep>kept leave>left meet>met pay>paid say>said "
        "sell>sold send>sent sit>sat sleep>slept speak>spoke stand>stood teach>taught tell>told "
        "think>thought win>won break>broke bring>brought buy>bought"
    ),
    "comparative": _pairs(
        "big>bigger small>smaller tall>taller fast>faster slow>slower cold>colder warm>warmer "
        "long>longer short>shorter old>older young>younger high>higher low>lower rich>richer "
        "poor>poorer hard>harder soft>softer deep>deeper wide>wider thick>thicker thin>thinner "
        "strong>stronger weak>weaker clean>cleaner dark>darker light>lighter loud>louder "
        "quiet>quieter near>nearer cheap>cheaper"
    ),
    "number": _pairs(
        "one>1 two>2 three>3 four>4 five>5 six>6 seven>7 eight>8 nine>9 ten>10 eleven>11 "
        "twelve>12 thirteen>13 fourteen>14 fifteen>15 sixteen>16 seventeen>17 eighteen>18 "
        "nineteen>19 twenty>20 thirty>30 forty>40 fifty>50 sixty>60 seventy>70 eighty>80 ninety>90"
    ),
    "letter": tuple((noun, noun[0]) for noun in _NOUNS),
    "material": _pairs(
        "window>glass coin>metal sweater>wool book>paper shoe>leather tire>rubber nail>iron "
        "candle>wax bottle>glass fence>wood brick>clay ring>gold shirt>cotton can>tin statue>stone "
        "barrel>wood jeans>denim knife>steel cup>porcelain rope>hemp"
    ),
}


def unrelated_prompts(tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """Prompts of examples, cut at a length, `[prompt, length]`.

    Args:
        tokenizer: A tokenizer of the library tokenizers.
        count: How many.
        length: How many tokens each has.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    tasks = list(WORD_TASKS.values())
    rows = []
    while len(rows) < count:
        pairs = tasks[int(torch.randint(len(tasks), (), generator=generator))]
        order = torch.randperm(len(pairs), generator=generator).tolist()
        text = "".join(f"Q:{pairs[i][0]}\nA:{pairs[i][1]}\n\n" for i in order)
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        if len(ids) == length:
            rows.append(ids)
    return torch.tensor(rows)
