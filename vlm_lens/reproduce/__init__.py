"""Experiments of the paper, run and set beside its numbers."""
