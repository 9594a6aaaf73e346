"""What a replay cannot do."""

from __future__ import annotations

from vlm_lens.errors import VLMLensError


class NotReplayable(VLMLensError):
    """A model or an intervention whose variants must be computed from the beginning."""
