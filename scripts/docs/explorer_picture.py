"""Writes the explorer's picture of README and first page, light and dark, by Chromium.

`python -m scripts.docs.explorer_picture` computes the page and writes docs/pictures/explorer.png
and explorer-dark.png. Needs Chromium: `apt-get install -y chromium`.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from vlm_lens.cli import app

OUT = Path(__file__).resolve().parents[2] / "docs" / "pictures"
STATE = "#vector=country-capital&block=4"
SIZE = 1240, 1190
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
           f"--window-size={SIZE[0]},{SIZE[1]}")  # fmt: skip


def main(out: Path = OUT) -> None:
    """Writes both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        asked = ["explore", "--model", "toy-idefics2", "--out", str(page)]
        app(asked, standalone_mode=False)
        for name, scheme in (("explorer.png", 1), ("explorer-dark.png", 0)):
            look = f"--blink-settings=preferredColorScheme={scheme}"
            command = ["chromium", *OPTIONS, look, f"--screenshot={shot}", page.as_uri() + STATE]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            with Image.open(shot) as picture:
                picture.convert("RGB").quantize(128).save(out / name, optimize=True)


if __name__ == "__main__":
    main()
