"""The error of work in several processes."""

from __future__ import annotations

from vlm_lens.errors import VLMLensError


class DistributedError(VLMLensError):
    """Work that cannot be done in other processes as asked, or that ended them."""
