"""What an answer hangs on, by gradients: attribution between prompts, of patches, of edges."""

from vlm_lens.attribution.attribute import attribute
from vlm_lens.attribution.circuit import Circuit
from vlm_lens.attribution.edges import Edges, attribute_edges
from vlm_lens.attribution.inputs import attribute_inputs
from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.attribution.scores import Attribution, rank_correlation

__all__ = [
    "Attribution",
    "AttributionError",
    "Circuit",
    "Edges",
    "attribute",
    "attribute_edges",
    "attribute_inputs",
    "rank_correlation",
]
