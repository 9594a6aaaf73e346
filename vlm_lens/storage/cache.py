"""Where the library keeps what it has made for itself once."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(name: str) -> Path:
    """A folder in the user's cache, or in `VLM_LENS_CACHE` if that is set.

    Args:
        name: What is kept there.
    """
    own = os.environ.get("VLM_LENS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(base or Path.home() / ".cache") / "vlm_lens") / name
