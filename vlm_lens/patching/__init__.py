"""Exact patching between two runs whose positions correspond: single places, and paths."""

from __future__ import annotations

from vlm_lens.patching.donor import Donor, PatchingError, Transplant, read_donor
from vlm_lens.patching.exact import Patched, Spot, patch_spots
from vlm_lens.patching.parts import NoDifference
from vlm_lens.patching.patch import Each, patch
from vlm_lens.patching.path import patch_paths
from vlm_lens.patching.receivers import Receiver

__all__ = [
    "Donor",
    "Each",
    "NoDifference",
    "Patched",
    "PatchingError",
    "Receiver",
    "Spot",
    "Transplant",
    "patch",
    "patch_paths",
    "patch_spots",
    "read_donor",
]
