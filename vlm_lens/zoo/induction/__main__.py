"""`python -m vlm_lens.zoo.induction [FOLDER]` writes toy-induction."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_lens.zoo.induction.build import write

if __name__ == "__main__":
    shipped = Path(__file__).parents[1] / "models" / "toy-induction"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped
    write(target)
    sys.stdout.write(f"{target}\n")
