"""What is linear in a model: weights by name, norms at a fixed scale, parts of the stream."""

from vlm_lens.stream.refusal import StreamError

__all__ = ["StreamError"]
