r"""toy-induction: a vision-language model whose weights are written down, not trained.

It answers `Q:{name}\nA:` with what stands at that name: in a picture the color of the cell (`b3`),
in text what an earlier `Q:{name}\nA:` was answered with. Which head does what, and what the
residual stream holds after each block, is known exactly; `docs/zoo/toy-induction.md` says it.
`python -m vlm_lens.zoo.induction` writes the folder that ships with the package.
"""

from __future__ import annotations

from vlm_lens.zoo.induction.codes import code_book
from vlm_lens.zoo.induction.plan import (
    ANSWER,
    DEFAULT,
    INDUCTION,
    PREVIOUS,
    QUESTION,
    SCALE,
    SLOTS,
    read_slot,
)

__all__ = [
    "ANSWER",
    "DEFAULT",
    "INDUCTION",
    "PREVIOUS",
    "QUESTION",
    "SCALE",
    "SLOTS",
    "code_book",
    "read_slot",
]
