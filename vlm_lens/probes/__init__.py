"""Linear probes, with held-out entities, a control task and a text-only baseline."""

from vlm_lens.probes.data import ProbeError, ProbeSet
from vlm_lens.probes.probe import ProbeResult, probe

__all__ = ["ProbeError", "ProbeResult", "ProbeSet", "probe"]
