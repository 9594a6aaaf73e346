"""The error of scores."""

from __future__ import annotations

from vlm_lens.errors import VLMLensError


class ScoresError(VLMLensError):
    """Scores asked for an axis, a place or a picture that they do not have."""
