"""The error of attribution."""

from __future__ import annotations

from vlm_lens.errors import VLMLensError


class AttributionError(VLMLensError):
    """An attribution that a measure, a model or two prompts do not allow."""
