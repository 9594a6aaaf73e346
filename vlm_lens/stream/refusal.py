"""The error of residual streams and their weights."""

from __future__ import annotations

from vlm_lens.errors import VLMLensError


class StreamError(VLMLensError):
    """A part, a norm or a weight that cannot be told apart in this model."""
