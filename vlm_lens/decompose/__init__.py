"""What an answer is made of: shares of heads, MLPs and patches in a logit, and in a tower."""

from vlm_lens.decompose.decompose import decompose
from vlm_lens.decompose.scores import Decomposition

__all__ = ["Decomposition", "decompose"]
