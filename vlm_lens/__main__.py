"""`python -m vlm_lens`: the command line."""

from __future__ import annotations

from vlm_lens.cli import app

if __name__ == "__main__":
    app(prog_name="vlm-lens")
