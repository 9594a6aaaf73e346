"""`python -m vlm_lens.dictionaries.shipped [FOLDER]` trains the shipped dictionary again."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_lens.dictionaries.shipped.build import build
from vlm_lens.model.hooked_vlm import HookedVLM

if __name__ == "__main__":
    shipped = Path(__file__).parent / "toy-idefics2"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped
    build(HookedVLM.from_pretrained("toy-idefics2"), target)
    sys.stdout.write(f"{target}\n")
